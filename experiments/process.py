"""Settings of a command's process that make it fast, to be applied before it computes."""

import ctypes
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

# Constants of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# A constant of sys/mman.h.
_MADV_HUGEPAGE = 14
# Share of the machine's memory; Linux may refuse all of it.
_HUGE_SHARE = 0.75
# XLA's flag for the number of CPU devices.
DEVICES_FLAG = "--xla_force_host_platform_device_count"


def cache_compiled_programs() -> None:
    """Makes JAX keep compiled programs in files, so that a restart does not compile them again.

    The folder is ``JAX_COMPILATION_CACHE_DIR`` or, where that is not set, one in the user's cache.
    """
    import jax  # Not at the top: a wrong command line is then reported without delay.

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "nfnets_jax" / "xla"))


def use_cores_as_devices() -> None:
    """Makes each core a device of JAX with one thread, where JAX computes on CPUs alone.

    Small runs side by side, one a device, use the cores better than one run on all of them. Call it
    before JAX starts. It does nothing where ``XLA_FLAGS`` sets the number of CPU devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if has_accelerators() or DEVICES_FLAG in flags:
        return
    own = f"{DEVICES_FLAG}={len(cores())} --xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{flags} {own}".strip()


def compile_quickly() -> None:
    """Leaves out LLVM's optimizations, where JAX computes on CPUs alone.

    Programs that take few steps do not repay them. Call it before JAX starts.
    """
    if has_accelerators():
        return
    own = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {own}".strip()


def cores() -> list[int]:
    """Returns the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step, where JAX computes on CPUs alone.

    XLA allocates the gigabytes of a step each time. By default glibc returns them to the system,
    which then hands them out page by page and zeroed. The pages are huge where Linux has them: a
    step touches more small pages than a processor remembers the addresses of.

    Call it before JAX starts its threads. It does nothing where the environment has a ``MALLOC_``
    variable of glibc.
    """
    if platform.libc_ver()[0] != "glibc" or has_accelerators():
        return
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    # The arenas of threads map large blocks whatever the other two options say.
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # Never.
    _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Asks Linux for huge pages in the part of the heap where allocations will lie.

    The part is allocated and freed at once, so that later allocations lie in it; no page of it is
    touched.
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
    """Returns whether JAX was installed for more than CPUs, without starting it."""
    plugins = metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
