"""What a command sets up before it computes, so that it is fast."""

import ctypes
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

from nfnets_jax.errors import InputError

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_DEVICES_FLAG = "--xla_force_host_platform_device_count"


def keep_programs() -> None:
    """Makes a restart as fast as it can be: what was compiled once is read from a file.

    It lies in the user's cache, or in ``JAX_COMPILATION_CACHE_DIR`` if that is set.
    """
    import jax  # Here, so that a command line that is wrong is refused at once.

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "nfnets_jax" / "xla"))


def keep_freed_memory() -> None:
    """Keeps memory that is freed for the next step, where JAX computes on CPUs alone.

    XLA takes the gigabytes that a step works in anew each time, and glibc would give them back to
    the system, which hands them out again page by page and zeroed. To be called before JAX starts
    its threads. Where the user has set one of glibc's ``MALLOC_`` variables, those hold.
    """
    if platform.libc_ver()[0] != "glibc" or has_accelerators():
        return
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Arenas of threads take what is large from the system whatever the other two say.
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # Never.


def divide_cpus(devices: int, batch_size: int) -> None:
    """Makes several devices of the CPUs, each with a thread of its own, where JAX has no others.

    What a thread works on can stay in its cache then, and threads wait for each other once a step;
    each device updates all parameters. To be called before JAX starts. Where the user's
    ``XLA_FLAGS`` say how many there are, that holds.

    Args:
      devices: how many; 1 leaves all threads to one, 0 is one a core, or fewer, so that they share
        a batch evenly.
      batch_size: of all devices.

    Raises:
      InputError: there is no such number of devices.
    """
    if devices < 0:
        raise InputError(f"cpu_devices is {devices}; it takes 1 or more, or 0 for one a core")
    if not devices:
        cores = os.cpu_count() or 1
        devices = max(count for count in range(1, cores + 1) if batch_size % count == 0)
    flags = os.environ.get("XLA_FLAGS", "")
    if devices == 1 or has_accelerators() or _DEVICES_FLAG in flags:
        return
    os.environ["XLA_FLAGS"] = (
        f"{flags} {_DEVICES_FLAG}={devices} --xla_cpu_multi_thread_eigen=false".strip()
    )


def has_accelerators() -> bool:
    """Whether JAX was installed for more than CPUs; it is not asked, for it would start threads."""
    plugins = metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
