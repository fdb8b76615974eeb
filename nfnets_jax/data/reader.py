"""Batches read ahead, in threads or worker processes, from any position on."""

import functools
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import numpy as np

from nfnets_jax.data.examples import Batch
from nfnets_jax.data.pipeline import Batches
from nfnets_jax.data.shared_memory import SharedArrays
from nfnets_jax.data.sources import ArraySource
from nfnets_jax.data.stages import StageTimes, seconds_reading
from nfnets_jax.data.worker_processes import WorkerProcesses
from nfnets_jax.errors import WorkerError

# Largest number of examples that a thread or a process loads at a time.
_MAX_PART = 64
# Batches that are prepared ahead.
_PREPARED = 2
# Name of the seconds that a part took to read and to decode, beside its arrays.
_SECONDS = "seconds"
# Failures in a row after which worker processes are not replaced any more.
_MAX_FAILURES = 3


class Reader:
    """Iterates over batches from a position on, reading ahead.

    Worker processes write images into memory that is shared, where they stay as long as anyone
    holds the batch: nothing is copied. Where the system has no room for the processes' locks,
    threads read in their place, and ``warn`` is told.

    Attributes:
      position: of the next batch; a reader that starts there continues with it.
      longest_stride: most batches that ``take`` returns at a time, 1.
    """

    longest_stride = 1

    def __init__(
        self,
        batches: Batches,
        start: int = 0,
        num_workers: int | Literal["auto"] = 0,
        *,
        prepare: Callable[[Batch], Any] = lambda batch: batch,
        warn: Callable[[str], None] = print,
    ):
        """Starts to read.

        Args:
          batches: the batches to read.
          start: position of the first batch.
          num_workers: worker processes; 0 reads in threads; "auto" decides by ``auto_workers``.
          prepare: applied to each batch ahead of time, in a thread of its own, such as the transfer
            to the devices.
          warn: called with a line of text when worker processes are replaced, or cannot start.

        Raises:
          InputError: worker processes are to read, and none of the first images can be.
        """
        self.position = start
        if num_workers == "auto":
            num_workers = auto_workers(batches)
        self._batches, self._num_workers = batches, num_workers
        self._prepare, self._warn = prepare, warn
        self._stages = StageTimes()
        self._start()

    def _start(self) -> None:
        """Starts to read from the position on."""
        self._workers = self._start_workers()
        self._iterator = self._read_ahead(self.position)
        self._thread = ThreadPoolExecutor(1)
        self._prepared: deque[Future[Any]] = deque()
        for _ in range(_PREPARED):
            self._prepare_next()

    def _start_workers(self) -> "_Workers":
        if self._num_workers:
            try:
                return _Processes(self._batches, self.position, self._num_workers, self._warn)
            except OSError as error:
                self._warn(
                    f"no room for the locks of worker processes, {error.strerror}: docker run "
                    "--shm-size=64m makes room in /dev/shm; threads read images in their place"
                )
                self._num_workers = 0
        return _Threads(self._batches)

    def _prepare_next(self) -> None:
        self._prepared.append(self._thread.submit(next, self._iterator, None))

    def _read_ahead(self, position: int) -> Iterator[Any]:
        """Yields prepared batches, while the workers load those after them."""
        end = self._batches.count
        positions = itertools.count(position) if end is None else iter(range(position, end))
        loading: deque[_Loading] = deque()
        while True:
            for next_position in itertools.islice(positions, self._workers.ahead - len(loading)):
                loading.append(self._workers.load(next_position))
            if not loading:
                return
            batch: Any = loading.popleft()()
            self._stages.loaded(*batch.pop(_SECONDS).sum(0).tolist())
            prepared = self._prepare(batch)
            del batch  # Its memory is free for the next one.
            self._stages.transferred()
            yield prepared
            del prepared

    def stage_shares(self) -> dict[str, float]:
        """Returns each stage's share of the time that batches took since the last call.

        An estimate by ``StageTimes``; it holds where the program waits for batches.
        """
        return self._stages.shares()

    def __iter__(self) -> "Reader":
        return self

    def __next__(self) -> Any:
        """Returns the next batch.

        Raises:
          WorkerError: worker processes died three times in a row.
        """
        for _ in range(_MAX_FAILURES):
            self._prepare_next()
            try:
                with self._workers.waiting:
                    batch = self._prepared.popleft().result()
            except BrokenProcessPool:
                self._warn("a worker process that reads images was killed; replacing the workers")
                self.close()
                self._start()
                continue
            if batch is None:
                raise StopIteration
            self.position += 1
            return batch
        raise WorkerError(
            "worker processes that read images keep being killed, perhaps for lack of memory: use "
            "fewer of them"
        )

    def take(self, count: int) -> Any:
        """Returns the next batch; ``count`` is 1, the ``longest_stride``."""
        assert count == self.longest_stride
        return next(self)

    def close(self) -> None:
        """Stops reading and ends the worker processes."""
        self._workers.close()
        self._thread.shutdown(cancel_futures=True)


# Waits for a batch that is being loaded, and returns it.
_Loading = Callable[[], dict[str, np.ndarray]]


class _Workers(Protocol):
    """Threads or processes that load parts of batches, in order.

    Attributes:
      ahead: batches to load at a time, so that all are busy.
      waiting: entered while a batch is waited for.
    """

    ahead: int
    waiting: AbstractContextManager[None]

    def load(self, position: int) -> _Loading:
        """Starts to load a batch."""
        ...

    def close(self) -> None:
        """Stops the work."""
        ...


class _Threads:
    """Threads of this process, one for each core."""

    waiting: AbstractContextManager[None] = nullcontext()

    def __init__(self, batches: Batches):
        self._batches = batches
        self._executor = ThreadPoolExecutor(cores())
        self._parts = _parts(batches)
        self.ahead = 1 + math.ceil(cores() / len(self._parts))

    def load(self, position: int) -> _Loading:
        parts = [
            self._executor.submit(_load_part, self._batches, position, part) for part in self._parts
        ]
        return lambda: _joined(parts)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


class _Processes:
    """Worker processes, which write images into shared memory."""

    def __init__(self, batches: Batches, position: int, count: int, warn: Callable[[str], None]):
        group = batches.examples.group_size
        sample = batches.part(position, 0, group)["image"]
        rows = len(sample) * batches.local_size // group
        self._arrays = SharedArrays((rows, *sample.shape[1:]), sample.dtype)
        self._processes = WorkerProcesses(
            count, functools.partial(_load_into, batches), self._arrays, warn
        )
        self._parts = _parts(batches)
        self.ahead = 1 + math.ceil(2 * count / len(self._parts))
        self.waiting: AbstractContextManager[None] = self._processes.watch

    def load(self, position: int) -> _Loading:
        number, images = self._arrays.lend()
        parts = [self._processes.submit(position, part, number) for part in self._parts]
        return lambda: {**_joined(parts), "image": images}

    def close(self) -> None:
        self._processes.close()


def _parts(batches: Batches) -> list[slice]:
    """Returns equal parts of this host's share of a batch, each loaded at once: whole groups."""
    group = batches.examples.group_size
    sizes = range(group, max(group, _MAX_PART) + 1, group)
    size = max(size for size in sizes if batches.local_size % size == 0)
    return [slice(start, start + size) for start in range(0, batches.local_size, size)]


def _load_part(batches: Batches, position: int, part: slice) -> dict[str, Any]:
    start, read = time.perf_counter(), seconds_reading()
    loaded = batches.part(position, part.start, part.stop - part.start)
    read = seconds_reading() - read
    return {**loaded, _SECONDS: np.array([[read, time.perf_counter() - start - read]])}


def _load_into(
    batches: Batches, arrays: SharedArrays, position: int, part: slice, number: int
) -> dict[str, Any]:
    """Loads a part, and its images into the array of this number."""
    loaded = _load_part(batches, position, part)
    images = loaded.pop("image")
    rows = len(images) // (part.stop - part.start)
    arrays[number][part.start * rows : part.stop * rows] = images
    return loaded


def _joined(parts: Sequence[Future[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    loaded = [part.result() for part in parts]
    return {name: np.concatenate([each[name] for each in loaded]) for name in loaded[0]}


def auto_workers(batches: Batches) -> int:
    """Returns how many processes should read: 0, threads, for images in memory or for a GPU.

    Else one for each core but one, which is left to the program itself. On a GPU that decodes, each
    process would take memory of its own.
    """
    examples = batches.examples
    if isinstance(examples.source, ArraySource) or examples.reading.on_gpu:
        return 0
    return max(1, cores() - 1)


def cores() -> int:
    """Returns how many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
