"""Augmentation of training images: the protocol of a transform, and the one that recipes use."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from nfnets_jax.data import transforms
from nfnets_jax.data.batch_context import BatchContext, Stream
from nfnets_jax.data.decoding import Picture, resize
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.randaugment import randaugment
from nfnets_jax.errors import InputError, nearest

_CROPS = ("inception", "pad")


class Augmented(NamedTuple):
    """Augmented images.

    Attributes:
      images: ``[B, size, size, C]`` uint8.
      partners: ``[B]``, the position in the batch of the image mixed into each; its own for none.
      shares: ``[B]`` float32, each image's own share of the mixture; 1 where nothing is mixed.
    """

    images: np.ndarray
    partners: np.ndarray
    shares: np.ndarray


class TrainTransform(Protocol):
    """The transform that turns pictures into training images.

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
          images: ``[B, size, size, C]`` uint8, a part of a batch; may be changed in place.
          batch: index, epoch and random numbers of each image.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentation of the NFNet papers: crop, shift, flip, mix, then RandAugment.

    Attributes:
      size: side of the images, pixels.
      crop: ``"inception"`` for photographs; ``"pad"`` for small images, used whole.
      padding: largest shift with ``"pad"``, pixels.
      reflect: mirror the image into the border that a shift uncovers, instead of black.
      flip: flip half of the images left to right.
      mixing: how neighbours are mixed.
      randaugment_layers, randaugment_magnitude: operations of RandAugment per image, and their
        magnitude.

    Raises:
      InputError: no crop has this name, or a number is negative.
    """

    size: int
    crop: str = "inception"
    padding: int = 0
    reflect: bool = False
    flip: bool = False
    mixing: Mixing = Mixing()  # noqa: RUF009, it is frozen
    randaugment_layers: int = 0
    randaugment_magnitude: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in _CROPS:
            raise InputError(f"no crop {self.crop!r} for training; there are {', '.join(_CROPS)}")
        if self.randaugment_layers < 0 or self.randaugment_magnitude < 0:
            raise InputError(
                "RandAugment takes layers and a magnitude from 0 on, not "
                f"{self.randaugment_layers} and {self.randaugment_magnitude}"
            )

    @property
    def group_size(self) -> int:
        """2 where neighbours are mixed, else 1."""
        return 2 if self.mixing else 1

    @property
    def random_crop(self) -> bool:
        """Whether the crop is random."""
        return self.crop == "inception"

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
        if self.crop == "inception":
            return transforms.inception_crop(picture, self.size, rng)
        return resize(picture.pixels(), self.size, self.size)

    def augment(self, images: np.ndarray, batch: BatchContext) -> Augmented:
        """Shifts, flips, mixes and RandAugments images, as ``TrainTransform`` has it."""
        if self.largest_shift:
            images = transforms.shift(images, self.offsets(batch), self.reflect)
        if self.flip:
            transforms.flip(images, self.flipped(batch))
        mixed = self._mix(images, batch)
        return mixed._replace(images=self._randaugment(mixed.images, batch))

    def offsets(self, batch: BatchContext) -> np.ndarray:
        """Chooses the shifts, ``[B, 2]`` pixels down and to the right, uniformly."""
        offsets = np.floor(batch.uniform[:, :2] * (2 * self.padding + 1)).astype(int)
        return offsets - self.padding

    def flipped(self, batch: BatchContext) -> np.ndarray:
        """Chooses the images to flip, ``[B]`` booleans, where ``flip`` is set: half, at random."""
        return batch.uniform[:, 2] < 0.5

    def _mix(self, images: np.ndarray, batch: BatchContext) -> Augmented:
        own, shares = np.arange(len(images)), np.ones(len(images), np.float32)
        if not self.mixing:
            return Augmented(images, own, shares)
        partners, mixtures = own ^ 1, np.empty_like(images)
        for i, partner in enumerate(partners):
            pair, rng = batch.indices[i] // 2, batch.rng(i, Stream.MIX)
            mixtures[i], shares[i] = self.mixing.mix(images[i], images[partner], pair, rng)
        return Augmented(mixtures, partners, shares)

    def _randaugment(self, images: np.ndarray, batch: BatchContext) -> np.ndarray:
        layers, magnitude = self.randaugment_layers, self.randaugment_magnitude
        if not layers:
            return images
        augmented = np.empty_like(images)
        for i, image in enumerate(images):
            rng = batch.rng(i, Stream.RANDAUGMENT)
            augmented[i] = randaugment(image, layers, magnitude, rng)
        return augmented


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
