"""Batches read ahead by Grain, in threads or worker processes, from any position on."""

import contextlib
import dataclasses
import errno
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import flags

from nfnets_jax.data import shared_memory
from nfnets_jax.data.examples import Batch
from nfnets_jax.data.pipeline import Batches
from nfnets_jax.data.sources import ArraySource
from nfnets_jax.data.stages import StageTimes, seconds_reading
from nfnets_jax.data.worker_processes import Watch, end_with_parent, hide_leak_warnings
from nfnets_jax.errors import InputError, WorkerError

# Largest number of examples that a thread or a process loads at a time.
_MAX_CHUNK = 64
# Shared memory that the locks of a worker process take, with room to spare: 27 pages of 4 KiB.
_LOCK_BYTES = 2**17
# Smaller arrays cost more as files in shared memory than they do pickled.
_SHARED_BYTES = 2**14
# Name of the seconds that a part took to read and to decode, beside its arrays.
_SECONDS = "seconds"
# Failures in a row after which worker processes are not replaced any more.
_MAX_FAILURES = 3


class Reader:
    """Iterates over batches from a position on, reading ahead.

    Worker processes hand over images in shared memory. Where there is too little of it, they do so
    through pipes, which takes more of this process's time; where there is not even room for their
    locks, or it runs out later, threads read in their place. ``warn`` is told.

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
          warn: called with a line of text when worker processes are replaced, or lack shared
            memory.
        """
        self.position = start
        if num_workers == "auto":
            num_workers = auto_workers(batches)
        self._batches, self._num_workers = batches, num_workers
        self._prepare, self._warn = prepare, warn
        self._stages = StageTimes()
        self._chunk_size = _chunk_size(batches)
        self._shared_bytes = self._estimate_shared_bytes() if num_workers else 0
        self._through_pipes = False
        locks = _LOCK_BYTES * num_workers
        if shortage := shared_memory.shortage(self._shared_bytes + locks):
            if shared_memory.shortage(locks):
                self._use_threads(shortage)
            else:
                warn(f"{shortage}; images go through pipes, which takes longer")
                self._through_pipes = True
        self._watch = Watch(warn) if num_workers else None
        if num_workers:
            hide_leak_warnings()
        self._iterator = self._read_ahead()

    @property
    def _buffer(self) -> int:
        """Chunks that a worker, or all threads, read ahead: the next batch while one is taken."""
        per_batch = self._batches.local_size // self._chunk_size
        if self._num_workers:
            return max(2, math.ceil(2 * per_batch / self._num_workers))
        return max(2, 2 * per_batch, cores())  # Every thread has work.

    def _read_ahead(self) -> grain.DatasetIterator:
        chunks = _Chunks(self._batches, self.position, self._chunk_size)
        workers, buffer = self._num_workers, self._buffer
        threads = 1 if workers else cores()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        dataset = grain.MapDataset.source(chunks).to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, in any program.
                flags.FLAGS.mark_as_parsed()
            smallest = sys.maxsize if self._through_pipes else _SHARED_BYTES
            dataset = grain.experimental.WithOptionsIterDataset(
                dataset, grain.experimental.DatasetOptions(min_shm_size=smallest)
            ).mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffer))
        dataset = dataset.batch(chunks.per_batch, batch_fn=_concatenate).map(self._prepared)
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
        return iter(dataset)

    def _estimate_shared_bytes(self) -> int:
        """Returns about how many bytes of shared memory the worker processes fill."""
        group = self._batches.examples.group_size
        try:
            sample: Any = self._batches.part(self.position, 0, group)
        except InputError:  # The workers will raise it, too.
            return 0
        chunk = sum(array.nbytes for array in sample.values()) * self._chunk_size // group
        # Grain fills a worker's buffer twice, there and in a thread here, with a chunk in hand at
        # either end. One batch is concatenated while that before it is freed.
        ahead = self._num_workers * (2 * self._buffer + 2)
        return chunk * ahead + 2 * chunk * (self._batches.local_size // self._chunk_size)

    def _use_threads(self, reason: str) -> None:
        self._warn(f"{reason}; threads read images in place of worker processes")
        self._num_workers = 0

    def _prepared(self, batch: Any) -> Any:
        """Prepares a batch, and notes how long each stage took."""
        self._stages.loaded(*batch.pop(_SECONDS).sum(0).tolist())
        prepared = self._prepare(batch)
        self._stages.transferred()
        return prepared

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
            try:
                with self._watch or contextlib.nullcontext():
                    batch = next(self._iterator)
            except (RuntimeError, OSError) as error:
                if self._num_workers and _fills_shared_memory(error):
                    self._use_threads(shared_memory.exhausted(self._shared_bytes))
                elif "terminated unexpectedly" in str(error):
                    self._warn(
                        "a worker process that reads images was killed; replacing the workers"
                    )
                else:
                    raise
                self._iterator.close()
                self._iterator = self._read_ahead()
            else:
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
        if self._watch:
            self._watch.close()
        self._iterator.close()


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Equal parts of batches, each loaded at once: a source for Grain.

    Attributes:
      batches: the batches.
      start: position of the first batch.
      size: examples per chunk, a divisor of this host's share of a batch.
    """

    batches: Batches
    start: int
    size: int

    @property
    def per_batch(self) -> int:
        return self.batches.local_size // self.size

    def __len__(self) -> int:
        count = self.batches.count
        return sys.maxsize if count is None else max(0, count - self.start) * self.per_batch

    def __getitem__(self, index: int) -> dict[str, Any]:
        end_with_parent()
        batch, chunk = divmod(int(index), self.per_batch)
        start, read = time.perf_counter(), seconds_reading()
        part = self.batches.part(self.start + batch, chunk * self.size, self.size)
        read = seconds_reading() - read
        return {**part, _SECONDS: np.array([[read, time.perf_counter() - start - read]])}


def auto_workers(batches: Batches) -> int:
    """Returns how many processes should read: 0, threads, for images that are in memory.

    Else one for each core but one, which is left to the program itself.
    """
    if isinstance(batches.examples.source, ArraySource):
        return 0
    return max(1, cores() - 1)


def cores() -> int:
    """Returns how many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunk_size(batches: Batches) -> int:
    """Returns the largest divisor of a batch that is whole groups and within the limit."""
    group = batches.examples.group_size
    sizes = range(group, max(group, _MAX_CHUNK) + 1, group)
    return max(size for size in sizes if batches.local_size % size == 0)


def _fills_shared_memory(error: Exception) -> bool:
    """Returns whether an error is that of a process that found no room in shared memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # What does not fit is found where it is written, and the signal ends the process.
    return f"exit code {-signal.SIGBUS}." in str(error)


def _concatenate(chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
