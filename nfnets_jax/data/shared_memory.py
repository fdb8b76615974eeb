"""Shared memory, in which worker processes hand over what they read: how much of it is free."""

import os

_FOLDER = "/dev/shm"
_REMEDY = "docker run --shm-size={}m makes room, data.num_workers=0 reads in threads and needs none"


def shortage(needed: int) -> str:
    """Returns a phrase that says how much is needed and how much is free, and the remedy.

    It is empty if there is enough, or where shared memory is no folder.

    Args:
      needed: bytes.
    """
    if not os.path.isdir(_FOLDER):
        return ""
    of_folder = os.statvfs(_FOLDER)
    free = of_folder.f_bavail * of_folder.f_frsize
    if needed <= free:
        return ""
    used = (of_folder.f_blocks - of_folder.f_bavail) * of_folder.f_frsize
    return (
        f"worker processes need about {needed / 2**20:.1f} MiB of shared memory, and "
        f"{_FOLDER} has {free / 2**20:.1f} MiB free: {_remedy(used + needed)}"
    )


def exhausted(needed: int) -> str:
    """Returns a phrase that says that shared memory ran out, and the remedy.

    Args:
      needed: bytes, about.
    """
    return f"worker processes ran out of shared memory, {_FOLDER} is full: {_remedy(needed)}"


def _remedy(needed: int) -> str:
    """Returns how to make room, in a size that is a power of two."""
    mebibytes = max(1, needed >> 20)
    return _REMEDY.format(1 << mebibytes.bit_length())
