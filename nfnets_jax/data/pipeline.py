"""Batches in an order that the seed alone decides, read ahead from any position on."""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.examples import (
    Augmentation,
    Batch,
    CenterCrop,
    EvalExamples,
    TrainExamples,
)
from nfnets_jax.data.sources import Source
from nfnets_jax.errors import InputError, UnreadableImageError, WorkerError

# Most images that a thread or a process works on before it hands them on.
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Batches:
    """One host's parts of batches.

    Batch ``i`` over all hosts holds the examples at the places from ``i * batch_size`` on; the
    first host has the first of them. So it is the same whatever the number of hosts.

    Attributes:
      load: from consecutive places to the examples there.
      batch_size: over all hosts, a multiple of their number.
      count: how many batches there are; None for no end.
      process_index, process_count: which host's parts.
      name: from places to the names of the records there.
      multiple: of how many examples ``load`` takes multiples.
    """

    load: Callable[[np.ndarray], Batch]
    batch_size: int
    count: int | None
    process_index: int
    process_count: int
    name: Callable[[np.ndarray], list[str]] | None = None
    multiple: int = 1

    @property
    def local_size(self) -> int:
        """Examples of one host's part."""
        return self.batch_size // self.process_count

    def names(self, index: int) -> list[str]:
        """Of the records in this host's part of a batch."""
        return self.name(self._places(index, 0, self.local_size)) if self.name else []

    def part(self, index: int, start: int, length: int) -> Batch:
        """So many examples of this host's part of a batch."""
        return self.load(self._places(index, start, length))

    def _places(self, index: int, start: int, length: int) -> np.ndarray:
        first = index * self.batch_size + self.process_index * self.local_size + start
        return first + np.arange(length)

    def __getitem__(self, index: int) -> Batch:
        """This host's part of a batch."""
        return self.part(index, 0, self.local_size)


def train_batches(
    source: Source,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless batches to learn from; every epoch holds each record once, in another order.

    Args:
      source: what to read.
      augmentation: applied to each image with random numbers of its own.
      batch_size: over all processes, a multiple of their number, and of twice that if images are
        mixed.
      seed: of the order and of the augmentation.
      process_index, process_count: which part of each batch is this process's.

    Raises:
      InputError: the batch cannot be split into pairs to be mixed.
    """
    multiple = 2 if augmentation.mixing else 1
    if batch_size % (multiple * process_count):
        raise InputError(
            f"batch_size {batch_size} over {process_count} processes cannot be mixed in pairs; "
            f"take a multiple of {multiple * process_count}"
        )
    examples = TrainExamples(source, augmentation, seed)
    return Batches(
        examples.load, batch_size, None, process_index, process_count, examples.names, multiple
    )


def eval_batches(
    source: Source,
    crop: CenterCrop,
    channels: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Every record once, in order; the last batch is filled up with examples whose mask is 0.

    Arguments are those of ``train_batches``; ``channels`` are the images'. All processes get the
    same number of batches.
    """
    count = math.ceil(len(source) / batch_size)
    examples = EvalExamples(source, crop, channels)
    return Batches(examples.load, batch_size, count, process_index, process_count)


class Reader:
    """Iterates over batches from a position on, reading ahead.

    Attributes:
      position: of the batch that comes next. A reader that starts there goes on with it.
    """

    def __init__(
        self,
        batches: Batches,
        start: int = 0,
        num_workers: int = 0,
        *,
        prepare: Callable[[Batch], Any] = lambda batch: batch,
        tell: Callable[[str], None] = print,
    ):
        """Starts to read.

        Args:
          batches: what to read.
          start: position of the first batch.
          num_workers: processes that read; 0 reads in threads.
          prepare: done to each batch ahead of time, in a thread of its own, such as taking it to
            the devices.
          tell: is given a line when a process had to be replaced.
        """
        self.position = start
        self._source, self._num_workers = batches, num_workers
        self._prepare, self._tell = prepare, tell
        self._ahead = self._read_ahead()

    def _read_ahead(self) -> grain.DatasetIterator:
        chunks, workers = _Chunks(self._source, self.position), self._num_workers
        threads = 1 if workers else os.cpu_count() or 1
        # Enough that while a batch is taken the next is read.
        buffer = max(2, math.ceil(2 * chunks.a_batch / max(1, workers)))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        dataset = grain.MapDataset.source(chunks).to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, in any program.
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffer)
            )
        dataset = dataset.batch(chunks.a_batch, batch_fn=_join).map(self._prepare)
        return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2))

    def __iter__(self) -> "Reader":
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
          WorkerError: processes that read for it died, three times in a row.
        """
        for _ in range(3):
            try:
                batch = next(self._ahead)
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):
                    raise
                self._tell("a process that reads images was killed; others take its place")
                self.close()
                self._ahead = self._read_ahead()
            else:
                self.position += 1
                return batch
        raise WorkerError(
            "processes that read images are killed again and again, perhaps for want of memory: "
            "lower data.num_workers"
        )

    def close(self) -> None:
        """Ends the reading."""
        self._ahead.close()


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Batches in equal chunks, each read in one go: a source for Grain."""

    batches: Batches
    start: int

    @property
    def size(self) -> int:
        """The largest part of a batch that divides it and is not too large."""
        sizes = range(self.batches.multiple, _CHUNK + 1, self.batches.multiple)
        return max(size for size in sizes if self.batches.local_size % size == 0)

    @property
    def a_batch(self) -> int:
        return self.batches.local_size // self.size

    def __len__(self) -> int:
        count = self.batches.count
        return sys.maxsize if count is None else max(0, count - self.start) * self.a_batch

    def __getitem__(self, index: int) -> Batch:
        batch, chunk = divmod(int(index), self.a_batch)
        return self.batches.part(self.start + batch, chunk * self.size, self.size)


def _join(chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def check_readable(source: Source, samples: int = 16) -> None:
    """Decodes a few records from all over the source, so that bad data show before work begins.

    Raises:
      InputError: none of them can be decoded.
    """
    for index in np.unique(np.linspace(0, len(source) - 1, samples, dtype=int)):
        try:
            record = source[int(index)]
            Picture(record["image"], record["name"]).pixels()
        except UnreadableImageError as error:
            first = str(error)
        else:
            return
    raise InputError(f"no image can be read; the first: {first}")
