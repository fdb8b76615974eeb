"""From places in the order of the data to arrays: reading, cropping, mixing, augmenting."""

import dataclasses
import functools
from typing import TypedDict

import numpy as np

from nfnets_jax.data import transforms
from nfnets_jax.data.decoding import Picture, resize
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.randaugment import randaugment
from nfnets_jax.data.sources import ArraySource, Record, Source, fetch
from nfnets_jax.errors import InputError, UnreadableImageError

# Records in a row that are stepped over because none can be read.
_STEPS_OVER = 100


class Batch(TypedDict):
    """Examples as arrays.

    Attributes:
      image: ``[B, size, size, C]`` uint8.
      label: ``[B]`` int32.
      unreadable: ``[U]`` strings, records that were to be read and could not, with the reason.
    """

    image: np.ndarray
    label: np.ndarray
    unreadable: np.ndarray


class TrainBatch(Batch):
    """Examples to learn from.

    Attributes:
      other_label: ``[B]`` int32, of the image that this one is mixed with.
      share: ``[B]`` float32, of ``label`` in the mixture; 1 where nothing is mixed.
    """

    other_label: np.ndarray
    share: np.ndarray


class EvalBatch(Batch):
    """Examples to be evaluated on.

    Attributes:
      mask: ``[B]`` float32, 0 for those that do not count: they fill up the last batch, or stand
        for an image that could not be read.
    """

    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to images before a network learns from them.

    Attributes:
      size: side of the images, pixels.
      crop: ``"inception"`` for photographs, ``"pad"`` for small images that are already cut.
      padding: largest shift of ``"pad"``, pixels.
      reflect: whether images are mirrored at the edges that they are moved from, not black there.
      flip: mirror every other image, left to right.
      alternate: mirror an image every other epoch, from one drawn on, instead of by chance: Jordan
        2024, arXiv:2404.00498, section 3.6. For ``flip``.
      mixing: how two images become one.
      layers, magnitude: of RandAugment; no layers for none of it.
    """

    size: int
    crop: str = "inception"
    padding: int = 0
    reflect: bool = False
    flip: bool = False
    alternate: bool = False
    mixing: Mixing = Mixing()  # noqa: RUF009, it is frozen
    layers: int = 0
    magnitude: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in transforms.CROPS:
            known = ", ".join(transforms.CROPS)
            raise InputError(f"no crop {self.crop!r}; data.crop is one of {known}")
        if self.layers < 0 or self.magnitude < 0:
            raise InputError(
                "RandAugment takes layers and a magnitude from 0 on, not "
                f"{self.layers} and {self.magnitude}"
            )


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """The part of the images that is evaluated.

    Attributes:
      size: side of the result, pixels.
      margin: what is cut off around it, pixels of the resized image, both sides together.
      crop: ``"resize"`` the image first, or cut out the ``"padded"`` centre first.
    """

    size: int
    margin: int = 0
    crop: str = "resize"

    def __post_init__(self) -> None:
        if self.crop not in transforms.TEST_CROPS:
            known = ", ".join(transforms.TEST_CROPS)
            raise InputError(f"no crop {self.crop!r}; data.test_crop is one of {known}")

    def __call__(self, picture: Picture) -> np.ndarray:
        """``[size, size, C]`` uint8."""
        crop = transforms.TEST_CROPS[self.crop]
        return crop(picture.pixels(), self.size, self.margin)


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """An endless sequence of examples; every epoch holds each record once, in another order.

    An example depends on the seed and its place alone, and on its neighbour's if they are mixed:
    those at an even place and the next are neighbours.
    """

    source: Source
    augmentation: Augmentation
    seed: int

    def load(self, places: np.ndarray) -> TrainBatch:
        """The examples at some places.

        Args:
          places: ``[B]``, consecutive; where examples are mixed, in whole pairs.
        """
        rngs = _Generators(self.seed)
        images, labels, unreadable = self._read(places, rngs)
        images = self._move(images, places, rngs.table(int(places[0]), len(places)))
        images, shares = self._mix(images, places, rngs)
        images = self._randaugment(images, places, rngs)
        neighbour = np.arange(len(places)) ^ bool(self.augmentation.mixing)
        return TrainBatch(
            image=images,
            label=labels,
            other_label=labels[neighbour],
            share=shares,
            unreadable=np.array(unreadable, str),
        )

    def names(self, places: np.ndarray) -> list[str]:
        """Of the records at some places, ``[B]``."""
        return [record["name"] for record in fetch(self.source, self._records(places).tolist())]

    def _records(self, places: np.ndarray) -> np.ndarray:
        """Positions in the source."""
        epochs, positions = np.divmod(places, len(self.source))
        records = np.empty_like(places)
        for epoch in np.unique(epochs):
            order = _epoch_order(len(self.source), self.seed, int(epoch))
            records[epochs == epoch] = order[positions[epochs == epoch]]
        return records

    def _read(
        self, places: np.ndarray, rngs: "_Generators"
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Images of the right size, labels, and the names of records that cannot be read."""
        records, size = self._records(places), self.augmentation.size
        source, cut = self.source, self.augmentation.crop == "pad"
        if isinstance(source, ArraySource) and cut and source.images.shape[1:3] == (size, size):
            return source.images[records], source.labels[records].astype(np.int32), []
        images, labels = [], np.empty(len(places), np.int32)
        unreadable: list[str] = []
        for index, record in enumerate(fetch(source, records.tolist())):
            rng, position = rngs.at(int(places[index]), _CROP), int(records[index])
            image, labels[index] = self._first_readable(record, position, rng, unreadable)
            images.append(image)
        return np.stack(images), labels, unreadable

    def _first_readable(
        self, record: Record, position: int, rng: np.random.Generator, unreadable: list[str]
    ) -> tuple[np.ndarray, int]:
        """Image and label of a record or, if it cannot be read, of the next that can.

        What cannot be read is appended to ``unreadable``.
        """
        for step in range(1, _STEPS_OVER + 1):
            try:
                return self._crop(Picture(record["image"], record["name"]), rng), record["label"]
            except UnreadableImageError as error:
                unreadable.append(str(error))
                record = self.source[(position + step) % len(self.source)]
        raise InputError(
            f"{_STEPS_OVER} images in a row cannot be read, the last: {unreadable[-1]}"
        )

    def _crop(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        size = self.augmentation.size
        if self.augmentation.crop == "inception":
            return transforms.inception_crop(picture, size, rng)
        return resize(picture.pixels(), size, size)

    def _move(self, images: np.ndarray, places: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Images shifted and mirrored by random numbers ``[B, 4]``; the given ones may change."""
        padding = self.augmentation.padding
        if padding and self.augmentation.crop == "pad":
            offsets = np.floor(draws[:, :2] * (2 * padding + 1)).astype(int) - padding
            images = transforms.shift(images, offsets, self.augmentation.reflect)
        if self.augmentation.flip:
            mirrored = draws[:, 2] < 0.5
            if self.augmentation.alternate:
                first = _first_mirrored(len(self.source), self.seed)[self._records(places)]
                mirrored = first ^ (places // len(self.source) % 2 == 1)
            transforms.mirror(images, mirrored)
        return images

    def _mix(
        self, images: np.ndarray, places: np.ndarray, rngs: "_Generators"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The images mixed with their neighbours, and their own shares."""
        shares = np.ones(len(images), np.float32)
        if not self.augmentation.mixing:
            return images, shares
        mixtures = np.empty_like(images)
        for index, place in enumerate(places):
            mixtures[index], shares[index] = self.augmentation.mixing.mix(
                images[index], images[index ^ 1], place // 2, rngs.at(place, _MIX)
            )
        return mixtures, shares

    def _randaugment(
        self, images: np.ndarray, places: np.ndarray, rngs: "_Generators"
    ) -> np.ndarray:
        layers, magnitude = self.augmentation.layers, self.augmentation.magnitude
        if not layers:
            return images
        augmented = np.empty_like(images)
        for index, place in enumerate(places):
            rng = rngs.at(place, _RANDAUGMENT)
            augmented[index] = randaugment(images[index], layers, magnitude, rng)
        return augmented


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """Every record once, in order; after the last one, examples that do not count."""

    source: Source
    crop: CenterCrop
    channels: int

    def load(self, places: np.ndarray) -> EvalBatch:
        """The examples at some places, ``[B]``."""
        size = self.crop.size
        images = np.zeros((len(places), size, size, self.channels), np.uint8)
        labels, mask = np.zeros(len(places), np.int32), np.zeros(len(places), np.float32)
        unreadable = []
        records = fetch(self.source, places[places < len(self.source)].tolist())
        for index, record in enumerate(records):
            try:
                images[index] = self.crop(Picture(record["image"], record["name"]))
            except UnreadableImageError as error:
                unreadable.append(str(error))
            else:
                labels[index], mask[index] = record["label"], 1
        return EvalBatch(
            image=images, label=labels, mask=mask, unreadable=np.array(unreadable, str)
        )


# What the random numbers of an example are for.
_CROP, _MOVE, _MIX, _RANDAUGMENT = range(4)


class _Generators:
    """Random numbers of each example's own, whatever is drawn for others."""

    def __init__(self, seed: int):
        self._bits = np.random.Philox(key=np.array([seed, 0], np.uint64))
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, place: int, purpose: int) -> np.random.Generator:
        """At the beginning of what an example has for a purpose; until the next call."""
        return self._seek(0, purpose, place)

    def table(self, first: int, count: int) -> np.ndarray:
        """Four numbers in [0, 1) for each of so many examples, ``[count, 4]``, at little cost."""
        return self._seek(first, _MOVE, 0).random((count, 4))

    def _seek(self, *counter: int) -> np.random.Generator:
        # Setting the state of one generator takes a tenth of the time of making another.
        self._state["state"]["counter"][:3] = counter
        self._bits.state = self._state
        return self._generator


@functools.lru_cache(maxsize=4)
def _epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The records of an epoch, in its order."""
    bits = np.random.Philox(key=np.array([seed, 1], np.uint64), counter=[0, 0, epoch, 0])
    return np.random.Generator(bits).permutation(length)


@functools.lru_cache(maxsize=4)
def _first_mirrored(length: int, seed: int) -> np.ndarray:
    """Which records are mirrored in the first epoch where epochs alternate, ``[length]`` bools."""
    bits = np.random.Philox(key=np.array([seed, 2], np.uint64))
    return np.random.Generator(bits).random(length) < 0.5
