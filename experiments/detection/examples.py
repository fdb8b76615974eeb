"""Training and test examples of images with objects: from indices to arrays."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nfnets_jax.data.batch_context import BatchContext, Stream
from nfnets_jax.data.decoding import Picture, Reading
from nfnets_jax.data.examples import Order, first_readable
from nfnets_jax.data.sources import Source, fetch
from nfnets_jax.errors import UnreadableImageError

from .objects import Objects
from .placement import Jitter, Placement, fit

# Makes the arrays of one example's objects, placed on its square.
Encode = Callable[[Objects, Placement], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ObjectTrainExamples:
    """An endless sequence of augmented images and their objects, an ``Examples``.

    Attributes:
      source: the images.
      jitter: draws the placement of each.
      encode: makes the arrays of an image's objects.
      seed: of the order and of the placements.
      reading: how files are read.
    """

    source: Source
    jitter: Jitter
    encode: Encode
    seed: int
    reading: Reading

    @property
    def group_size(self) -> int:
        """1: examples are independent."""
        return 1

    def records(self, indices: np.ndarray) -> np.ndarray:
        """Returns the positions in the source of the images at some indices."""
        return self._context(indices).records

    def _context(self, indices: np.ndarray) -> BatchContext:
        return Order(len(self.source), self.seed).context(indices)

    def load(self, indices: np.ndarray) -> Any:
        """Loads the examples at some indices, ``[B]``.

        Raises:
          InputError: a hundred images in a row cannot be read.
        """
        context = self._context(indices)
        examples: list[Mapping[str, np.ndarray]] = []
        unreadable: list[str] = []

        for place, position in enumerate(context.records.tolist()):
            rng = context.rng(place, Stream.CROP)

            def read(position: int, rng: np.random.Generator = rng) -> Mapping[str, np.ndarray]:
                pixels, objects = open_record(self.source, position, self.reading)
                height, width = pixels.shape[:2]
                placement = self.jitter.draw(height, width, rng)
                return {"image": placement.image(pixels), **self.encode(objects, placement)}

            examples.append(first_readable(read, position, len(self.source), unreadable))
        return {**stack(examples), "unreadable": np.array(unreadable, str)}


@dataclasses.dataclass(frozen=True)
class ObjectTestExamples:
    """Every image once, in order, an ``Examples``; indices beyond the last do not count.

    Attributes:
      source: the images.
      size: side of the square that an image is fitted in, pixels.
      encode: makes the arrays of an image's objects.
      reading: how files are read.
    """

    source: Source
    size: int
    encode: Encode
    reading: Reading

    @property
    def group_size(self) -> int:
        """1: examples are independent."""
        return 1

    def records(self, indices: np.ndarray) -> np.ndarray:
        """Returns the positions in the source of the examples at some indices, up to ``[B]``."""
        return indices[indices < len(self.source)]

    def load(self, indices: np.ndarray) -> Any:
        """Loads the examples at some indices, ``[B]``; ``mask`` is 0 for those that do not count.

        What cannot be read does not count either.
        """
        examples, mask, unreadable = [], np.zeros(len(indices), np.float32), []
        for place in range(len(indices)):
            pixels, objects = _NO_IMAGE, _NO_OBJECTS
            try:
                if indices[place] < len(self.source):
                    pixels, objects = open_record(self.source, int(indices[place]), self.reading)
                    mask[place] = 1
            except UnreadableImageError as error:
                unreadable.append(str(error))
            height, width = pixels.shape[:2]
            placement = fit(height, width, self.size)
            examples.append({"image": placement.image(pixels), **self.encode(objects, placement)})
        return {**stack(examples), "mask": mask, "unreadable": np.array(unreadable, str)}


_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)
_NO_OBJECTS = Objects(
    np.zeros((0, 4), np.float32),
    np.zeros(0, np.int32),
    np.zeros(0, bool),
    (1, 1),
    np.zeros((0, 1, 1), bool),
)


def open_record(source: Source, position: int, reading: Reading) -> tuple[np.ndarray, Objects]:
    """Returns the pixels ``[H, W, 3]`` uint8 of an image, and its objects.

    Raises:
      UnreadableImageError: the image cannot be read.
    """
    (record,) = fetch(source, [position])
    pixels = Picture(record["image"], record["name"], reading).pixels()
    objects = record["label"]
    if pixels.shape[:2] != objects.shape:
        (height, width), (wanted_height, wanted_width) = pixels.shape[:2], objects.shape
        raise UnreadableImageError(
            f"{record['name']}: {width} x {height} pixels, and its objects are of an image of "
            f"{wanted_width} x {wanted_height}"
        )
    return as_rgb(pixels), objects


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Returns ``[H, W, 3]`` of a gray or a colour image."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def stack(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the arrays of examples, each with a leading axis of them."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclasses.dataclass(frozen=True)
class EncodeBoxes:
    """Makes ``boxes`` ``[most, 4]``, ``label`` ``[most]``, -1 for none, and ``crowd`` ``[most]``.

    Attributes:
      most: number of objects; of more, the largest are kept.
    """

    most: int

    def __call__(self, objects: Objects, placement: Placement) -> dict[str, np.ndarray]:
        """Encodes the objects of one image."""
        moved = placement.objects(objects)
        sides = moved.boxes[:, 2:] - moved.boxes[:, :2]
        kept = np.argsort(-sides.prod(1), kind="stable")[: self.most]
        boxes, label = np.zeros((self.most, 4), np.float32), np.full(self.most, -1, np.int32)
        crowd = np.zeros(self.most, bool)
        boxes[: len(kept)] = moved.boxes[kept]
        label[: len(kept)] = moved.classes[kept]
        crowd[: len(kept)] = moved.crowd[kept]
        return {"boxes": boxes, "label": label, "crowd": crowd}


def encode_class_map(objects: Objects, placement: Placement) -> dict[str, np.ndarray]:
    """Makes ``label`` ``[size, size]`` uint8 of one image, the label of each pixel."""
    return {"label": placement.labels(objects.class_map())}
