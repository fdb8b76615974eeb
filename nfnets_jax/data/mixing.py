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

    Each image of a pair becomes a mixture of its own. With MixUp and CutMix both on, pairs
    alternate between them (Brock et al. 2021b, arXiv:2102.06171, section 6.1). An object that mixes
    nothing is false.

    Attributes:
      mixup_alpha: of the distribution Beta(alpha, alpha) of shares (Zhang et al. 2018,
        arXiv:1710.09412); 0 for no MixUp.
      cutmix: whether to mix by CutMix (Yun et al. 2019, arXiv:1905.04899).

    Raises:
      InputError: ``mixup_alpha`` is negative or not finite.
    """

    mixup_alpha: float = 0.0
    cutmix: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.mixup_alpha < math.inf:
            raise InputError(f"mixup_alpha is {self.mixup_alpha}; it takes a number from 0 on")

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

    Args:
      image: ``[H, W, C]`` uint8.
      other: ``[H, W, C]`` uint8.
      share: of the image that stays visible if the whole rectangle lies inside.
      center: row and column of the rectangle's center, pixels.

    Returns:
      The mixture, ``[H, W, C]`` uint8, and the share of the image that stays visible.
    """
    mixture = _pasted(image.shape, share, center)
    return mixture.apply(image, other), mixture.share


def _pasted(shape: tuple[int, ...], share: float, center: tuple[float, float]) -> Mixture:
    height, width = shape[:2]
    side = math.sqrt(1 - share) / 2
    (top, bottom), (left, right) = (
        (max(0, round(at - side * length)), min(length, round(at + side * length)))
        for at, length in zip(center, (height, width), strict=True)
    )
    covered = (bottom - top) * (right - left)
    return Mixture(1 - covered / (height * width), 1, top, bottom, left, right)
