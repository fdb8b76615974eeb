"""Arrays in memory that processes share: one fills them, another uses them, and nobody copies."""

import math
import mmap
import os
import tempfile
import weakref
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import numpy.typing as npt


class SharedArrays:
    """Lends equal arrays, which processes that are started with this object can fill.

    Their memory is lent again once no array, view or device refers to it, so that the system
    provides its pages only once. It is a file without a name, which ends with the processes,
    however they end. The limit of ``/dev/shm`` does not apply to it.

    Args:
      shape, dtype: of each array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8):
        """Takes no memory yet."""
        if hasattr(os, "memfd_create"):
            self._open(shape, np.dtype(dtype), os.memfd_create("images"))
        else:  # A file on a disk, whose pages stay in memory while there is room.
            with tempfile.TemporaryFile() as file:
                self._open(shape, np.dtype(dtype), os.dup(file.fileno()))

    def _open(self, shape: tuple[int, ...], dtype: np.dtype, file: int) -> None:
        self._shape, self._dtype, self._file = shape, dtype, file
        self._length = math.prod(shape)
        # Bytes from one array to the next: whole pages.
        self._stride = -(-self._length * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        self._mapped: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        weakref.finalize(self, os.close, file)

    def lend(self) -> tuple[int, np.ndarray]:
        """Returns an array that nobody uses, and its number, in the process that made this object.

        What the array holds stays until nothing refers to the array, or to a view of it.
        """
        try:
            number = self._free.pop()
        except IndexError:
            number = len(self._mapped)
            os.ftruncate(self._file, (number + 1) * self._stride)
        array = self._flat(number)
        weakref.finalize(array, self._free.append, number).atexit = False
        return number, array.reshape(self._shape)

    def __getitem__(self, number: int) -> np.ndarray:
        """Returns the array that is lent under a number, in a process that fills it."""
        return self._flat(number).reshape(self._shape)

    def _flat(self, number: int) -> np.ndarray:
        if number not in self._mapped:
            offset = number * self._stride
            self._mapped[number] = mmap.mmap(self._file, self._stride, offset=offset)
        return np.frombuffer(self._mapped[number], self._dtype, self._length)

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to a process as it is started, with the open file."""
        return _opened, (self._shape, self._dtype, DupFd(self._file))


def _opened(shape: tuple[int, ...], dtype: np.dtype, file: Any) -> SharedArrays:
    arrays = SharedArrays.__new__(SharedArrays)
    arrays._open(shape, dtype, file.detach())
    return arrays
