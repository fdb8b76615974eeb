"""One process a core: several processes of this machine that train together."""

import os
import socket
import subprocess
import sys
from typing import NamedTuple

from nfnets_jax.errors import InputError

from .. import process

_IS_FOLLOWER = "NFNETS_IS_FOLLOWER"


class Membership(NamedTuple):
    """The place of a process among those of a run, as ``hosts.connect`` takes it."""

    coordinator_address: str
    num_processes: int
    process_id: int


def start(processes: int, batch_size: int) -> Membership | None:
    """Restarts this program once for each further core, and pins each process to its core.

    XLA runs the independent parts of a program side by side on all threads, which then evict each
    other's data from the caches. A process with a core of its own keeps its data there. The further
    processes, the followers, end with this one. JAX must not have started yet.

    Args:
      processes: their number, this one included; 1 leaves all cores to this process, 0 is one a
        core, or fewer, so that they share a batch evenly.
      batch_size: images of a batch, over all processes.

    Returns:
      The place of this process; None if it stays alone: because ``processes`` is 1, JAX has
      accelerators, or the user's ``XLA_FLAGS`` set the number of CPU devices.

    Raises:
      InputError: ``processes`` is negative.
    """
    if processes < 0:
        raise InputError(f"{processes} processes; it takes 1 or more, or 0 for one a core")
    cores = process.cores()
    if not processes:
        shares = range(1, len(cores) + 1)
        processes = max(count for count in shares if batch_size % count == 0)
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if processes == 1 or process.has_accelerators() or process.DEVICES_FLAG in xla_flags:
        return None
    os.environ["XLA_FLAGS"] = f"{xla_flags} --xla_cpu_multi_thread_eigen=false".strip()
    first = Membership(f"127.0.0.1:{free_port()}", processes, 0)
    for index in range(1, processes):
        membership = first._replace(process_id=index)
        flags = [f"--{name}={value}" for name, value in membership._asdict().items()]
        follower = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:], *flags],
            env={**os.environ, _IS_FOLLOWER: "1"},
        )
        _pin(follower.pid, cores[index % len(cores)])
    _pin(os.getpid(), cores[0])
    return first


def is_follower() -> bool:
    """Returns whether another process started this one, and reports for both."""
    return _IS_FOLLOWER in os.environ


def _pin(pid: int, core: int) -> None:
    if hasattr(os, "sched_setaffinity"):  # Not on macOS.
        os.sched_setaffinity(pid, {core})


def free_port() -> int:
    """Returns a TCP port of this machine that no process listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
