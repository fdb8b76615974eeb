"""What a command sets up before it computes, so that it is fast."""

import ctypes
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


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


def has_accelerators() -> bool:
    """Whether JAX was installed for more than CPUs; it is not asked, for it would start threads."""
    plugins = metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
