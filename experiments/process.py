"""What a command sets up before it computes, so that it is fast."""

import ctypes
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# Of sys/mman.h.
_MADV_HUGEPAGE = 14
# Of the machine's memory; Linux may refuse all of it.
_HUGE_SHARE = 0.75


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
    the system, which hands them out again page by page and zeroed. The pages are huge where Linux
    has such: of small ones a step touches more than a processor knows the places of. To be called
    before JAX starts its threads. Where the user has set one of glibc's ``MALLOC_`` variables,
    those hold.
    """
    if platform.libc_ver()[0] != "glibc" or has_accelerators():
        return
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    # Arenas of threads take what is large from the system whatever the other two say.
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # Never.
    _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Of a part of the heap, larger than what will be used, all pages that are yet to come.

    It is taken and freed at once, so that allocations will lie in it; nothing in it is touched.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    page = os.sysconf("SC_PAGE_SIZE")
    size = int(_HUGE_SHARE * os.sysconf("SC_PHYS_PAGES")) * page
    start = libc.malloc(size)
    if start is None:  # Refused: pages stay small.
        return
    libc.madvise(-(-start // page) * page, size - page, _MADV_HUGEPAGE)
    libc.free(start)


def has_accelerators() -> bool:
    """Whether JAX was installed for more than CPUs; it is not asked, for it would start threads."""
    plugins = metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
