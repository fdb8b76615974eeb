"""MixUp and CutMix: mixtures of two images, whose labels are weighted by their shares."""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from nfnets_jax.errors import InputError


class Mixture(NamedTuple):
    """How an image is mixed with another: a weighted mean, and a rectangle of the other alone.

    Attributes:
      share: of the image in the mixture, and so of its label.
      weight: of the image against the other outside of the rectangle.
      top, bottom, left, right: of the rectangle, pixels, the ends exclusive; empty for MixUp.
    """

    share: float
    weight: float
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def apply(self, image: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Mixes two images ``[H, W, C]`` uint8."""
        if self.weight < 1:
            return cv2.addWeighted(image, self.weight, other, 1 - self.weight, 0).reshape(
                image.shape
            )
        mixture = image.copy()
        rectangle = np.s_[self.top : self.bottom, self.left : self.right]
        mixture[rectangle] = other[rectangle]
        return mixture


@dataclasses.dataclass(frozen=True)
class Mixing:
    """The mixing of neighbours in pairs: the first with the second, the third with the fourth.

    With MixUp and CutMix both on, pairs alternate between them (Brock et al. 2021b,
    arXiv:2102.06171, section 6.1). An object that mixes nothing is false.

    Attributes:
      mixup_alpha: of the distribution Beta(alpha, alpha) of shares (Zhang et al. 2018,
        arXiv:1710.09412); 0 for no MixUp.
      cutmix: whether to mix by CutMix (Yun et al. 2019, arXiv:1905.04899).
      mixtures_per_pair: 1, so that no image is in two mixtures, as NFNets are trained; 2 makes a
        mixture of each image with its neighbour, of half as many images to read.

    Raises:
      InputError: ``mixup_alpha`` is negative or not finite, or the mixtures are neither 1 nor 2.
    """

    mixup_alpha: float = 0.0
    cutmix: bool = False
    mixtures_per_pair: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.mixup_alpha < math.inf:
            raise InputError(f"mixup_alpha is {self.mixup_alpha}; it takes a number from 0 on")
        if self.mixtures_per_pair not in (1, 2):
            raise InputError(f"mixtures_per_pair is {self.mixtures_per_pair}; it takes 1 or 2")

    def __bool__(self) -> bool:
        return self.mixup_alpha > 0 or self.cutmix

    def mix(
        self, image: np.ndarray, other: np.ndarray, pair: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """Mixes one image of a pair with the other.

        Args:
          image: ``[H, W, C]`` uint8.
          other: ``[H, W, C]`` uint8.
          pair: index of the pair, which decides between MixUp and CutMix.
          rng: random numbers of this image.

        Returns:
          The mixture, ``[H, W, C]`` uint8, and the share of ``image`` in it.
        """
        mixture = self.draw(image.shape, pair, rng)
        return mixture.apply(image, other), mixture.share

    def draw(self, shape: tuple[int, ...], pair: int, rng: np.random.Generator) -> Mixture:
        """Draws how ``mix`` mixes an image of a shape ``[H, W, ...]`` with its other."""
        if self.mixup_alpha and not (self.cutmix and pair % 2):
            share = rng.beta(self.mixup_alpha, self.mixup_alpha)
            return Mixture(share, share)
        height, width = shape[:2]
        return _pasted(shape, rng.random(), (rng.random() * height, rng.random() * width))


def mixup(image: np.ndarray, other: np.ndarray, share: float) -> tuple[np.ndarray, float]:
    """Blends two images ``[H, W, C]`` uint8; returns the mixture and the share of the first."""
    return Mixture(share, share).apply(image, other), share


def cutmix(
    image: np.ndarray, other: np.ndarray, share: float, center: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Pastes a rectangle of another image, with the image's proportions, onto an image.

    The rectangle extends by whole pixels from its center, equally far to either side, as NFNets
    are trained.

    Args:
      image: ``[H, W, C]`` uint8.
      other: ``[H, W, C]`` uint8.
      share: of the image that stays visible if the whole rectangle lies inside.
      center: row and column of the rectangle's center, pixels, rounded down.

    Returns:
      The mixture, ``[H, W, C]`` uint8, and the share of the image that stays visible.
    """
    mixture = _pasted(image.shape, share, center)
    return mixture.apply(image, other), mixture.share


def _pasted(shape: tuple[int, ...], share: float, center: tuple[float, float]) -> Mixture:
    (top, bottom), (left, right) = (
        _around(int(at), int(math.sqrt(1 - share) * length) // 2, length)
        for at, length in zip(center, shape[:2], strict=True)
    )
    covered = (bottom - top) * (right - left)
    return Mixture(1 - covered / (shape[0] * shape[1]), 1, top, bottom, left, right)


def _around(center: int, half: int, length: int) -> tuple[int, int]:
    """Returns the ends of the part of a side that is within ``half`` pixels of a place on it."""
    return max(0, center - half), min(length, center + half)
