"""Other processes of this machine that take part in a run, where it has nothing but CPUs."""

import os
import socket
import subprocess
import sys
from typing import NamedTuple

from experiments import process
from nfnets_jax.errors import InputError

_DEVICES_FLAG = "--xla_force_host_platform_device_count"
_IS_HELPER = "NFNETS_IS_HELPER"


class Membership(NamedTuple):
    """Of a process in a run, as ``hosts.connect`` takes it."""

    coordinator_address: str
    num_processes: int
    process_id: int


def start(processes: int, batch_size: int) -> Membership | None:
    """Starts this program again, so that each core has a process of its own, this one the first.

    XLA runs what it can of a program side by side on all threads, also with a device a thread: what
    one works on is in another's cache. A process that has one core keeps to it. Helpers end with
    this process. To be called before JAX starts.

    Args:
      processes: how many, this one included, of one core each; 1 leaves all cores to this one, 0 is
        one a core, or fewer, so that they share a batch evenly.
      batch_size: of all of them.

    Returns:
      What this one is to connect with; None where it stays alone: by its arguments, because JAX has
      other devices, or because the user's ``XLA_FLAGS`` say how many CPU devices there are.

    Raises:
      InputError: there is no such number of processes.
    """
    if processes < 0:
        raise InputError(f"cpu_processes is {processes}; it takes 1 or more, or 0 for one a core")
    cores = _cores()
    if not processes:
        shares = range(1, len(cores) + 1)
        processes = max(count for count in shares if batch_size % count == 0)
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if processes == 1 or process.has_accelerators() or _DEVICES_FLAG in xla_flags:
        return None
    os.environ["XLA_FLAGS"] = f"{xla_flags} --xla_cpu_multi_thread_eigen=false".strip()
    first = Membership(f"127.0.0.1:{free_port()}", processes, 0)
    for index in range(1, processes):
        membership = first._replace(process_id=index)
        flags = [f"--{name}={value}" for name, value in membership._asdict().items()]
        helper = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:], *flags],
            env={**os.environ, _IS_HELPER: "1"},
        )
        _keep_to(helper.pid, cores[index % len(cores)])
    _keep_to(os.getpid(), cores[0])
    return first


def is_helper() -> bool:
    """Whether another process started this one, and tells for both."""
    return _IS_HELPER in os.environ


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _keep_to(pid: int, core: int) -> None:
    if hasattr(os, "sched_setaffinity"):  # Not on macOS.
        os.sched_setaffinity(pid, {core})


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
