"""Training and evaluation examples: from indices to arrays of images and labels."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol, TypedDict, TypeVar

import numpy as np

from nfnets_jax.data.augmentation import LeftToDevice, TrainTransform
from nfnets_jax.data.batch_context import BatchContext, Stream
from nfnets_jax.data.decoding import AS_USUAL, Picture, Reading
from nfnets_jax.data.sources import ArraySource, Source, fetch
from nfnets_jax.data.transforms import CenterCrop
from nfnets_jax.errors import InputError, UnreadableImageError

Read = TypeVar("Read")

# Unreadable records in a row after which reading fails.
_MAX_SKIPPED = 100


class Batch(TypedDict):
    """Examples as arrays.

    Attributes:
      image: ``[B, size, size, C]`` uint8.
      label: ``[B]`` int32.
      unreadable: ``[U]`` strings, the name and the reason of each image that could not be read.
    """

    image: np.ndarray
    label: np.ndarray
    unreadable: np.ndarray


class TrainBatch(Batch, LeftToDevice):
    """Training examples, and what is left to the device to do to them.

    Attributes:
      other_label: ``[B]`` int32, of the image that this one is mixed with.
      share: ``[B]`` float32, weight of ``label`` against ``other_label``; 1 where nothing is mixed.
    """

    other_label: np.ndarray
    share: np.ndarray


class EvalBatch(Batch):
    """Evaluation examples.

    Attributes:
      mask: ``[B]`` float32, 0 for an example that does not count: it fills up the last batch, or
        its image could not be read.
    """

    mask: np.ndarray


class Examples(Protocol):
    """A sequence of examples, as ``Batches`` divides it."""

    @property
    def source(self) -> Source:
        """The records that are read."""
        ...

    @property
    def reading(self) -> Reading:
        """How files are read."""
        ...

    @property
    def group_size(self) -> int:
        """Consecutive examples that are always loaded together."""
        ...

    def records(self, indices: np.ndarray) -> np.ndarray:
        """Returns the positions in the source of the images of the examples at some indices."""
        ...

    def load(self, indices: np.ndarray) -> Batch:
        """Loads the examples at some indices, ``[B]``: consecutive, in whole groups."""
        ...


@dataclasses.dataclass(frozen=True)
class Order:
    """The endless order in which records are trained on, in epochs that each hold all of them.

    Attributes:
      length: number of records.
      seed: of the order, and of the random numbers of the images.
      repeats: how often each record appears.
      images_per_example: consecutive images that one example is made of.
      distinct: images that are repeated together, as those that are mixed with each other differ.
    """

    length: int
    seed: int
    repeats: int = 1
    images_per_example: int = 1
    distinct: int = 1

    def context(self, indices: np.ndarray) -> BatchContext:
        """Returns what is known of the images of the examples at some indices, ``[B]``."""
        count = self.images_per_example
        images = (indices[:, None] * count + np.arange(count)).ravel()
        # For groups a b and c d, each repeated twice: a b a b c d c d.
        repeated, within = np.divmod(images, self.distinct * self.repeats)
        epochs, positions = np.divmod(
            repeated * self.distinct + within % self.distinct, self.length
        )
        records = np.empty_like(images)
        for epoch in np.unique(epochs):
            order = _epoch_order(self.length, self.seed, int(epoch))
            records[epochs == epoch] = order[positions[epochs == epoch]]
        return BatchContext(self.seed, images, records, self.length, epochs)


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """An endless sequence of training examples.

    Each epoch holds every record once, in an order of its own, or ``repeats`` times. An example
    depends on the seed and its index alone, and on the rest of its group if the transform combines
    a group.

    Attributes:
      source: the records to train on.
      transform: decodes and augments the images.
      seed: seed of the order and of the augmentation.
      reading: how files are read.
      repeats: how often each record appears in a row, with different augmentations; those of a
        group, or of an example with several images, take turns.
    """

    source: Source
    transform: TrainTransform
    seed: int
    reading: Reading = AS_USUAL
    repeats: int = 1

    @property
    def group_size(self) -> int:
        """Consecutive examples that the transform combines, and all repetitions of their images."""
        return self.transform.group_size * self.repeats

    @property
    def order(self) -> "Order":
        """The order of the images, and their random numbers."""
        count = self.transform.images_per_example
        distinct = self.transform.group_size * count
        return Order(len(self.source), self.seed, self.repeats, count, distinct)

    def records(self, indices: np.ndarray) -> np.ndarray:
        """Returns the positions in the source of the images of the examples at some indices.

        Args:
          indices: ``[B]``.

        Returns:
          ``[B * images_per_example]``.
        """
        return self.order.context(indices).records

    def context(self, indices: np.ndarray) -> BatchContext:
        """Returns what is known of the images of the examples at some indices, ``[B]``."""
        return self.order.context(indices)

    def load(self, indices: np.ndarray) -> TrainBatch:
        """Loads the examples at some indices, ``[B]``: consecutive, in whole groups.

        Raises:
          InputError: a hundred images in a row cannot be read.
        """
        batch = self.context(indices)
        images, labels, unreadable = self._read(batch)
        augmented = self.transform.augment(images, batch)
        return TrainBatch(
            image=augmented.images,
            label=labels[:: self.transform.images_per_example],
            other_label=labels[augmented.partners],
            share=augmented.shares,
            unreadable=np.array(unreadable, str),
            **augmented.left,
        )

    def _read(self, batch: BatchContext) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Returns decoded images, their labels, and a message for each that cannot be read."""
        source, size = self.source, self.transform.size
        if (
            isinstance(source, ArraySource)
            and not self.transform.random_crop
            and source.images.shape[1:3] == (size, size)
        ):
            return source.images[batch.records], source.labels[batch.records].astype(np.int32), []
        images, labels = [], np.empty(len(batch.indices), np.int32)
        unreadable: list[str] = []
        distinct = np.unique(batch.records).tolist()
        records = dict(zip(distinct, fetch(source, distinct), strict=True))

        @functools.lru_cache(
            maxsize=self.order.distinct
        )  # So that a repeated image is decoded once.
        def opened(position: int) -> tuple[Picture, int]:
            record = records[position] if position in records else source[position]
            keep = self.repeats > 1
            return Picture(record["image"], record["name"], self.reading, keep), record["label"]

        for i, position in enumerate(batch.records.tolist()):
            rng = batch.rng(i, Stream.CROP)
            image, labels[i] = self._decode(opened, position, rng, unreadable)
            images.append(image)
        return np.stack(images), labels, unreadable

    def _decode(
        self,
        opened: Callable[[int], tuple[Picture, int]],
        position: int,
        rng: np.random.Generator,
        unreadable: list[str],
    ) -> tuple[np.ndarray, int]:
        """Returns the image and label of a record, or of the next one that can be read.

        Appends a message to ``unreadable`` for each record that cannot.
        """

        def read(position: int) -> tuple[np.ndarray, int]:
            picture, label = opened(position)
            return self.transform.decode(picture, rng), label

        return first_readable(read, position, len(self.source), unreadable)


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """Every record once, in order; indices beyond the last yield examples that do not count.

    Attributes:
      source: the records to evaluate on.
      crop: crops the pictures.
      channels: of the images.
      reading: how files are read.
    """

    source: Source
    crop: CenterCrop
    channels: int
    reading: Reading = AS_USUAL

    @property
    def group_size(self) -> int:
        """1: examples are independent."""
        return 1

    def records(self, indices: np.ndarray) -> np.ndarray:
        """Returns the positions in the source of the examples at some indices, up to ``[B]``."""
        return indices[indices < len(self.source)]

    def load(self, indices: np.ndarray) -> EvalBatch:
        """Loads the examples at some indices, ``[B]``."""
        size = self.crop.size
        images = np.zeros((len(indices), size, size, self.channels), np.uint8)
        labels, mask = np.zeros(len(indices), np.int32), np.zeros(len(indices), np.float32)
        unreadable = []
        for i, record in enumerate(fetch(self.source, self.records(indices).tolist())):
            try:
                images[i] = self.crop(Picture(record["image"], record["name"], self.reading))
            except UnreadableImageError as error:
                unreadable.append(str(error))
            else:
                labels[i], mask[i] = record["label"], 1
        return EvalBatch(
            image=images, label=labels, mask=mask, unreadable=np.array(unreadable, str)
        )


def first_readable(
    read: Callable[[int], Read], position: int, length: int, unreadable: list[str]
) -> Read:
    """Returns what is read at a position of a source, or at the next that can be read.

    Args:
      read: reads a position, and raises ``UnreadableImageError`` where it cannot.
      position: the first to try.
      length: of the source.
      unreadable: gets a message for each record that cannot be read.

    Raises:
      InputError: a hundred records in a row cannot be read.
    """
    for step in range(_MAX_SKIPPED):
        try:
            return read((position + step) % length)
        except UnreadableImageError as error:
            unreadable.append(str(error))
    raise InputError(f"{_MAX_SKIPPED} images in a row cannot be read, the last: {unreadable[-1]}")


@functools.lru_cache(maxsize=4)
def _epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the records of an epoch in its order, ``[length]``."""
    bits = np.random.Philox(key=np.array([seed, 1], np.uint64), counter=[0, 0, epoch, 0])
    return np.random.Generator(bits).permutation(length)
