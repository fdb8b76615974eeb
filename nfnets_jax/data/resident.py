"""Training images that stay in the devices' memory and are shuffled, shifted and flipped there.

The devices hold every image padded, and mirrored too where images are flipped. So an example is a
square of one of these images. The host draws which one: three integers an example, in the order and
by the random numbers of ``TrainExamples``. Every pixel is the one that a batch of the host's would
have.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.examples import TrainExamples
from nfnets_jax.data.pipeline import Batches
from nfnets_jax.data.sources import ArraySource
from nfnets_jax.data.transforms import pad
from nfnets_jax.devices import DeviceBatch, replicate, transfer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stride:
    """Consecutive training batches, to be made from images that the device holds.

    Attributes:
      images: ``[N, size + 2P, size + 2P, C]`` uint8, all records, padded by the largest shift P; if
        images are flipped, all once more with left and right exchanged.
      labels: ``[N]`` int32.
      places: ``[B, S, 3]`` int32, the image, row and column where each of B examples in each of S
        batches begins.
      count: ``[1]`` int32, the number of batches; those of the S from there on are not meant.
      size: side of the examples, pixels.
    """

    images: jax.Array
    labels: jax.Array
    places: jax.Array
    count: jax.Array
    size: int = dataclasses.field(metadata={"static": True})

    def batch(self, index: jax.Array | int) -> DeviceBatch:
        """Makes one of the batches: ``image`` ``[B, size, size, C]`` uint8, ``label`` ``[B]``."""
        places = self.places[:, index]
        shape = (1, self.size, self.size, self.images.shape[-1])

        def cut(place: jax.Array) -> jax.Array:
            return lax.dynamic_slice(self.images, (*place, 0), shape)[0]

        return {"image": jax.vmap(cut)(places), "label": self.labels[places[:, 0]]}


def obstacle(batches: Batches) -> str:
    """Returns why the devices cannot make these training batches; empty if they can."""
    examples = batches.examples
    if not isinstance(examples, TrainExamples) or not isinstance(examples.source, ArraySource):
        return "the training images are not one array in memory"
    source, transform = examples.source, examples.transform
    if not isinstance(transform, Augmentation) or not transform.only_moves:
        return "the augmentation does more than shift and flip whole images"
    if source.images.shape[1:3] != (transform.size, transform.size):
        height, width = source.images.shape[1:3]
        return f"the images of {height}x{width} pixels are resized to {transform.size}"
    return ""


class ResidentImages:
    """The training images that devices hold, and the draws that make batches of them."""

    def __init__(self, batches: Batches):
        """Takes this host's parts of training batches, to which there is no ``obstacle``."""
        examples = batches.examples
        assert isinstance(examples, TrainExamples)
        assert isinstance(examples.source, ArraySource)
        assert isinstance(examples.transform, Augmentation)
        self._batches, self._examples = batches, examples
        self._source, self._transform = examples.source, examples.transform

    @property
    def size(self) -> int:
        """Side of the examples, pixels."""
        return self._transform.size

    @property
    def bytes(self) -> int:
        """What the images take of each device's memory."""
        return math.prod(self._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        count, height, width, channels = self._source.images.shape
        padding = 2 * self._transform.largest_shift
        return count * (1 + self._transform.flip), height + padding, width + padding, channels

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns ``images`` and ``labels``, as ``Stride`` has them."""
        images, labels = self._source.images, self._source.labels.astype(np.int32)
        if shift := self._transform.largest_shift:
            images = pad(images, shift, self._transform.reflect)
        if self._transform.flip:
            images, labels = np.concatenate([images, images[:, :, ::-1]]), np.tile(labels, 2)
        return {"images": images, "labels": labels}

    def draw(self, first: int, count: int, longest: int) -> np.ndarray:
        """Draws the examples of this host's parts of consecutive batches.

        Args:
          first: index of the first batch.
          count: number of batches.
          longest: length of the result, S; zeros fill it up.

        Returns:
          ``places``, as ``Stride`` has them.
        """
        batches, transform = self._batches, self._transform
        # The parts of all hosts: consecutive examples are drawn in one go.
        indices = np.arange(first * batches.batch_size, (first + count) * batches.batch_size)
        context = self._examples.context(indices)
        places = np.zeros((len(indices), 3), np.int32)
        places[:, 0] = context.records
        if transform.largest_shift:
            places[:, 1:] = transform.largest_shift - transform.offsets(context)
        if transform.flip:
            flipped = transform.flipped(context)
            places[:, 0] += len(self._source) * flipped
            mirrored = 2 * transform.largest_shift - places[:, 2]
            places[:, 2] = np.where(flipped, mirrored, places[:, 2])
        places = places.reshape(count, batches.process_count, -1, 3)[:, batches.process_index]
        result = np.zeros((places.shape[1], longest, 3), np.int32)
        result[:, :count] = places.swapaxes(0, 1)
        return result

    def shapes(self, examples: int, longest: int) -> Stride:
        """Returns the shapes of a stride on one device, which gets ``examples`` of each batch."""
        array: Any = jax.ShapeDtypeStruct
        return Stride(
            images=array(self._shape, np.uint8),
            labels=array(self._shape[:1], np.int32),
            places=array((examples, longest, 3), np.int32),
            count=array((1,), np.int32),
            size=self.size,
        )


class ResidentReader:
    """Takes consecutive batches, a stride at a time, of images that it copies to the devices once.

    Attributes:
      position: of the next batch; a reader that starts there continues with it.
      longest_stride: most batches of a stride.
    """

    def __init__(
        self,
        images: ResidentImages,
        devices: Sequence[jax.Device],
        start: int = 0,
        longest_stride: int = 1,
    ):
        """Copies the images to every device.

        Args:
          images: the images.
          devices: the devices of all hosts.
          start: position of the first batch.
          longest_stride: most batches of a stride.
        """
        self.position, self.longest_stride = start, longest_stride
        self._images, self._devices = images, devices
        self._held = replicate(images.arrays(), devices)

    def take(self, count: int) -> tuple[list[str], Stride]:
        """Draws the next ``count`` batches, at most ``longest_stride``.

        Returns:
          No messages about images that cannot be read, and the stride on the devices, each array
          with a leading axis of this host's devices.
        """
        places = self._images.draw(self.position, count, self.longest_stride)
        self.position += count
        counts = np.full(len(self._held["labels"]), count, np.int32)
        drawn = transfer({"places": places, "count": counts}, self._devices)
        return [], Stride(**self._held, **drawn, size=self._images.size)

    def stage_shares(self) -> dict[str, float]:
        """Returns nothing: no time goes into reading, decoding and transferring."""
        return {}

    def close(self) -> None:
        """Frees the devices' memory."""
        self._held = {}
