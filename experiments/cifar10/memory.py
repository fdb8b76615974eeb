"""Huge pages: a training step then touches fewer pages than a processor keeps the places of."""

import ctypes
import os
import platform

# A constant of sys/mman.h.
_MADV_HUGEPAGE = 14
# Share of the machine's memory; Linux may refuse all of it.
_SHARE = 0.75


def ask_for_huge_pages() -> None:
    """Asks Linux for huge pages in the part of the heap where allocations will lie.

    The part is allocated and freed at once, so that later allocations lie in it; no page of it is
    touched. Where glibc or Linux refuse, pages stay small. To be called after
    ``process.keep_freed_memory``, by which glibc keeps the part.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    page = os.sysconf("SC_PAGE_SIZE")
    size = int(_SHARE * os.sysconf("SC_PHYS_PAGES")) * page
    start = libc.malloc(size)
    if start is None:
        return
    libc.madvise(-(-start // page) * page, size - page, _MADV_HUGEPAGE)
    libc.free(start)
