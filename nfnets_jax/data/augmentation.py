"""Augmentation of training images: the protocol of a transform, and the one that recipes use."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypedDict

import numpy as np

from nfnets_jax.data import randaugment, transforms
from nfnets_jax.data.batch_context import BatchContext, Stream
from nfnets_jax.data.decoding import Picture, resize
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.errors import InputError, nearest

# Random crops of photographs.
_RANDOM_CROPS: Mapping[str, Callable[[Picture, int, np.random.Generator], np.ndarray]] = (
    MappingProxyType(
        {"distorted": transforms.distorted_crop, "inception": transforms.inception_crop}
    )
)
CROPS = (*_RANDOM_CROPS, "pad")


class LeftToDevice(TypedDict, total=False):
    """What ``on_device.augment`` does to images, as arrays.

    Attributes:
      mixing: ``[B, 5]`` float32, the numbers of a ``Mixture`` of neighbours after its share.
      randaugment: ``[B, layers, 4]`` float32, operations and their parameters.
    """

    mixing: np.ndarray
    randaugment: np.ndarray


class Augmented(NamedTuple):
    """Augmented images, one an example.

    The own image of example ``i`` of ``B``, whose label comes first, is the one at position
    ``i * images_per_example`` of those that are augmented.

    Attributes:
      images: ``[B, size, size, C]`` uint8.
      partners: ``[B]``, the position of the image mixed into each; its own for none.
      shares: ``[B]`` float32, the own image's share of the mixture; 1 where nothing is mixed.
      left: what is left to the device.
    """

    images: np.ndarray
    partners: np.ndarray
    shares: np.ndarray
    left: LeftToDevice = LeftToDevice()


class TrainTransform(Protocol):
    """The transform that turns pictures into training examples.

    ``train_batches`` takes any object with these members. It calls ``decode`` on each picture,
    stacks the results, and calls ``augment`` on them. Worker processes receive pickled copies, so
    an implementation is best a frozen dataclass. It draws random numbers from its arguments alone:
    then an example is the same on any number of hosts, workers and devices.
    """

    @property
    def size(self) -> int:
        """Side of the images, pixels."""
        ...

    @property
    def images_per_example(self) -> int:
        """How many consecutive images, read for this example alone, ``augment`` makes one of."""
        ...

    @property
    def group_size(self) -> int:
        """How many consecutive examples ``augment`` combines; it is called with whole groups."""
        ...

    @property
    def random_crop(self) -> bool:
        """Whether ``decode`` is random; if not, images of ``size`` in memory skip it."""
        ...

    def decode(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        """Decodes and crops one picture.

        Args:
          picture: the image; reading its pixels may raise ``UnreadableImageError``, which the
            pipeline handles.
          rng: random numbers of this image.

        Returns:
          ``[size, size, C]`` uint8.
        """
        ...

    def augment(self, images: np.ndarray, batch: BatchContext) -> Augmented:
        """Augments images that are decoded and cropped.

        Args:
          images: ``[B * images_per_example, size, size, C]`` uint8, those of a part of a batch; may
            be changed in place.
          batch: index, epoch and random numbers of each image.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentation of the NFNet papers: crop, shift, flip, mix, then RandAugment.

    Attributes:
      size: side of the images, pixels.
      crop: one of ``CROPS``: ``"distorted"``, as published, or ``"inception"`` for photographs;
        ``"pad"`` for small images, used whole.
      padding: largest shift with ``"pad"``, pixels.
      reflect: mirror the image into the border that a shift uncovers, instead of black.
      flip: flip half of the images left to right.
      mixing: how neighbours are mixed.
      randaugment_layers, randaugment_magnitude: operations of RandAugment per image, and their
        magnitude.
      on_device: draw how images are mixed and RandAugmented, and leave it to the device to do.

    Raises:
      InputError: no crop has this name, or a number is negative.
    """

    size: int
    crop: str = "distorted"
    padding: int = 0
    reflect: bool = False
    flip: bool = False
    mixing: Mixing = Mixing()  # noqa: RUF009, it is frozen
    randaugment_layers: int = 0
    randaugment_magnitude: float = 0.0
    on_device: bool = False

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise InputError(f"no crop {self.crop!r} for training; there are {', '.join(CROPS)}")
        if self.randaugment_layers < 0 or self.randaugment_magnitude < 0:
            raise InputError(
                "RandAugment takes layers and a magnitude from 0 on, not "
                f"{self.randaugment_layers} and {self.randaugment_magnitude}"
            )

    @property
    def images_per_example(self) -> int:
        """2 where a mixture has two images of its own, else 1."""
        return 2 if self.mixing and self.mixing.mixtures_per_pair == 1 else 1

    @property
    def group_size(self) -> int:
        """2 where two examples are mixtures of the same two images, else 1."""
        return 2 if self.mixing and self.mixing.mixtures_per_pair == 2 else 1

    @property
    def random_crop(self) -> bool:
        """Whether the crop is random."""
        return self.crop in _RANDOM_CROPS

    @property
    def largest_shift(self) -> int:
        """Largest shift, pixels."""
        return self.padding if self.crop == "pad" else 0

    @property
    def only_moves(self) -> bool:
        """Whether all that happens to a whole image is a shift and a flip.

        A subclass that replaces more than the choice of ``offsets`` and ``flipped`` may do more.
        """
        replaceable = ("decode", "augment", "_mix", "_randaugment")
        own = all(getattr(type(self), name) is getattr(Augmentation, name) for name in replaceable)
        return own and not (self.random_crop or self.mixing or self.randaugment_layers)

    def decode(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        """Decodes and crops one picture, as ``TrainTransform`` has it."""
        if self.random_crop:
            return _RANDOM_CROPS[self.crop](picture, self.size, rng)
        return resize(picture.pixels(), self.size, self.size)

    def augment(self, images: np.ndarray, batch: BatchContext) -> Augmented:
        """Shifts, flips, mixes and RandAugments images, as ``TrainTransform`` has it."""
        if self.largest_shift:
            images = transforms.shift(images, self.offsets(batch), self.reflect)
        if self.flip:
            transforms.flip(images, self.flipped(batch))
        return self._randaugment(self._mix(images, batch), batch)

    def offsets(self, batch: BatchContext) -> np.ndarray:
        """Chooses the shifts, ``[B, 2]`` pixels down and to the right, uniformly."""
        offsets = np.floor(batch.uniform[:, :2] * (2 * self.padding + 1)).astype(int)
        return offsets - self.padding

    def flipped(self, batch: BatchContext) -> np.ndarray:
        """Chooses the images to flip, ``[B]`` booleans, where ``flip`` is set: half, at random."""
        return batch.uniform[:, 2] < 0.5

    def _mix(self, images: np.ndarray, batch: BatchContext) -> Augmented:
        own = np.arange(0, len(images), self.images_per_example)
        if not self.mixing:
            return Augmented(images, own, np.ones(len(own), np.float32))
        partners = own ^ 1
        mixtures = [
            self.mixing.draw(images.shape[1:], batch.indices[i] // 2, batch.rng(i, Stream.MIX))
            for i in own.tolist()
        ]
        numbers = np.array(mixtures, np.float32)
        mixed = Augmented(images, partners, numbers[:, 0])
        if self.on_device:
            return mixed._replace(left={"mixing": numbers[:, 1:]})
        pairs = zip(mixtures, images[own], images[partners], strict=True)
        return mixed._replace(images=np.stack([mixture.apply(*pair) for mixture, *pair in pairs]))

    def _randaugment(self, mixed: Augmented, batch: BatchContext) -> Augmented:
        layers, images = self.randaugment_layers, mixed.images
        if not layers:
            return mixed
        operations = [
            randaugment.draw(
                layers,
                self.randaugment_magnitude,
                images.shape[1:],
                batch.rng(i * self.images_per_example, Stream.RANDAUGMENT),
            )
            for i in range(len(mixed.shares))
        ]
        if self.on_device:
            numbers = np.stack([randaugment.as_numbers(each) for each in operations])
            return mixed._replace(left={**mixed.left, "randaugment": numbers})
        applied = [
            randaugment.apply(image, each) for image, each in zip(images, operations, strict=True)
        ]
        return mixed._replace(images=np.stack(applied))


_AUGMENTATIONS: dict[str, type[Augmentation]] = {"standard": Augmentation}


def register_augmentation(name: str, augmentation: type[Augmentation]) -> None:
    """Makes a subclass of ``Augmentation`` a value of the configuration's ``augment.name``."""
    _AUGMENTATIONS[name] = augmentation


def find_augmentation(name: str) -> type[Augmentation]:
    """Returns the augmentation of this name.

    Raises:
      InputError: no augmentation has it.
    """
    if name not in _AUGMENTATIONS:
        raise InputError(f"no augmentation {name!r}; {nearest(name, _AUGMENTATIONS)}")
    return _AUGMENTATIONS[name]
