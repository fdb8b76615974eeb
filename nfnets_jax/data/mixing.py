"""MixUp and CutMix: an image and its neighbour become one, and the labels share it."""

import dataclasses
import math

import cv2
import numpy as np

from nfnets_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How neighbours are mixed: the first with the second, the third with the fourth, and so on.

    Each image of a pair gets its own mixture of the two. With both ways on, every other pair is
    mixed by MixUp and the rest by CutMix (NFNets, section 6.1).

    Attributes:
      mixup_alpha: of the distribution Beta(alpha, alpha) of shares (Zhang et al. 2018,
        arXiv:1710.09412); 0 for no MixUp.
      cutmix: whether to mix by CutMix (Yun et al. 2019, arXiv:1905.04899).
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
        """One image of a pair and the other of it.

        Args:
          image, other: ``[H, W, C]`` uint8.
          pair: position of the pair, by which it is decided how to mix.
          rng: of this image alone.

        Returns:
          The mixture, and the first image's share of it.
        """
        if self.mixup_alpha and not (self.cutmix and pair % 2):
            return mixup(image, other, rng.beta(self.mixup_alpha, self.mixup_alpha))
        height, width = image.shape[:2]
        return cutmix(image, other, rng.random(), (rng.random() * height, rng.random() * width))


def mixup(image: np.ndarray, other: np.ndarray, share: float) -> tuple[np.ndarray, float]:
    """``share`` of the one and the rest of the other."""
    return cv2.addWeighted(image, share, other, 1 - share, 0).reshape(image.shape), share


def cutmix(
    image: np.ndarray, other: np.ndarray, share: float, center: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """The image with a part of the other over it, a rectangle of the same shape as both.

    Args:
      image, other: ``[H, W, C]`` uint8.
      share: of the image that is left if the whole rectangle is inside.
      center: row and column of the rectangle's middle.

    Returns:
      The mixture, and the share that is left.
    """
    height, width = image.shape[:2]
    side = math.sqrt(1 - share) / 2
    rows, columns = (
        slice(max(0, round(at - side * length)), min(length, round(at + side * length)))
        for at, length in zip(center, (height, width), strict=True)
    )
    mixture = image.copy()
    mixture[rows, columns] = other[rows, columns]
    covered = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixture, 1 - covered / (height * width)
