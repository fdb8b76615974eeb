"""Batches of examples, split over hosts: the same whatever the number of hosts."""

import dataclasses
import math

import numpy as np

from nfnets_jax.data.augmentation import TrainTransform
from nfnets_jax.data.decoding import AS_USUAL, Reading
from nfnets_jax.data.examples import Batch, EvalExamples, Examples, TrainExamples
from nfnets_jax.data.sources import Source, fetch
from nfnets_jax.data.transforms import CenterCrop
from nfnets_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Batches:
    """One host's share of a sequence of batches.

    Batch ``i`` of all hosts holds the examples from index ``i * batch_size`` on, the first host's
    first.

    Attributes:
      examples: what the batches are made of.
      batch_size: over all hosts, a multiple of their number.
      count: number of batches; None if they are endless.
      process_index, process_count: which host's share this is.
    """

    examples: Examples
    batch_size: int
    count: int | None
    process_index: int
    process_count: int

    @property
    def local_size(self) -> int:
        """Examples of one batch on this host."""
        return self.batch_size // self.process_count

    def __getitem__(self, index: int) -> Batch:
        """Loads this host's share of a batch."""
        return self.part(index, 0, self.local_size)

    def part(self, index: int, start: int, length: int) -> Batch:
        """Loads ``length`` examples of this host's share of a batch, from ``start`` on."""
        return self.examples.load(self._indices(index, start, length))

    def names(self, index: int) -> list[str]:
        """Returns the names of the records in this host's share of a batch."""
        records = self.examples.records(self._indices(index, 0, self.local_size))
        return [record["name"] for record in fetch(self.examples.source, records.tolist())]

    def _indices(self, index: int, start: int, length: int) -> np.ndarray:
        first = index * self.batch_size + self.process_index * self.local_size + start
        return first + np.arange(length)


def train_batches(
    source: Source,
    transform: TrainTransform,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    reading: Reading = AS_USUAL,
    repeats: int = 1,
) -> Batches:
    """Returns endless training batches; each epoch holds every record once, in a new order.

    Args:
      source: the records to train on.
      transform: decodes and augments the images, such as an ``Augmentation``.
      batch_size: over all hosts; a multiple of their number times the transform's group size and
        the repetitions.
      seed: seed of the order and of the augmentation.
      process_index, process_count: which host's share to load.
      reading: how files are read.
      repeats: how often each record appears in a batch, with different augmentations (Hoffer et al.
        2019, arXiv:1901.09335).

    Raises:
      InputError: the batch cannot be split over the hosts in whole groups, or ``repeats`` is less
        than 1.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}; it takes a whole number from 1 on")
    examples = TrainExamples(source, transform, seed, reading, repeats)
    return endless_batches(examples, batch_size, process_index, process_count)


def endless_batches(
    examples: Examples, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Returns batches of an endless sequence of examples.

    Args:
      examples: the examples.
      batch_size: over all hosts; a multiple of their number times the group size.
      process_index, process_count: which host's share to load.

    Raises:
      InputError: the batch cannot be split over the hosts in whole groups.
    """
    multiple = examples.group_size * process_count
    if batch_size % multiple:
        raise InputError(
            f"batch_size {batch_size} cannot be split over {process_count} processes in groups of "
            f"{examples.group_size} images; take a multiple of {multiple}"
        )
    return Batches(examples, batch_size, None, process_index, process_count)


def eval_batches(
    source: Source,
    crop: CenterCrop,
    channels: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    reading: Reading = AS_USUAL,
) -> Batches:
    """Returns batches of every record once, in order.

    The last batch is filled up with examples whose mask is 0; all hosts get equally many batches.

    Args:
      source: the records to evaluate on.
      crop: crops the pictures.
      channels: of the images.
      batch_size: over all hosts, a multiple of their number.
      process_index, process_count: which host's share to load.
      reading: how files are read.
    """
    examples = EvalExamples(source, crop, channels, reading)
    return finite_batches(examples, batch_size, process_index, process_count)


def finite_batches(
    examples: Examples, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Returns batches of the examples of every record once, in order.

    Args:
      examples: the examples; beyond those of the records are some that do not count.
      batch_size: over all hosts, a multiple of their number.
      process_index, process_count: which host's share to load.
    """
    count = math.ceil(len(examples.source) / batch_size)
    return Batches(examples, batch_size, count, process_index, process_count)
