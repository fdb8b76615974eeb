"""Crops, shifts and flips: from images of any size to arrays of the model's size."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from nfnets_jax.data.decoding import Picture, resize
from nfnets_jax.data.jpeg import Box
from nfnets_jax.errors import InputError

_INCEPTION_ATTEMPTS = 10
# Of an image's sides, which is resized whole.
_LARGEST_RATIO = 16


def inception_crop(picture: Picture, size: int, rng: np.random.Generator) -> np.ndarray:
    """Crops a random part of a picture to a square.

    The part covers 8 to 100% of the area, uniformly, and its width is 3/4 to 4/3 of its height,
    uniformly in the logarithm. Where ten draws do not fit, it is the largest central square
    (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Args:
      picture: decoded in this part alone, at a fraction of its resolution where that suffices.
      size: side of the result, pixels.
      rng: random numbers of this image.

    Returns:
      ``[size, size, C]`` uint8.
    """
    box = _inception_box(picture.height, picture.width, rng)
    return resize(picture.part(box, shrink=min(box.height, box.width) / size), size, size)


def _inception_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """Draws the part."""
    for _ in range(_INCEPTION_ATTEMPTS):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return Box(int(top), int(left), h, w)
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def shift(images: np.ndarray, offsets: np.ndarray, reflect: bool = False) -> np.ndarray:
    """Shifts images by whole pixels.

    Args:
      images: ``[N, H, W, C]``.
      offsets: ``[N, 2]`` integers, down and to the right.
      reflect: mirror the image into the border that it uncovers, instead of black.

    Returns:
      ``[N, H, W, C]``.
    """
    height, width = images.shape[1:3]
    margin = int(np.abs(offsets).max(initial=0))
    around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = np.pad(images, around, mode="reflect" if reflect else "constant")
    shifted = np.empty_like(images)
    for index, (top, left) in enumerate((margin - offsets).tolist()):
        shifted[index] = padded[index, top : top + height, left : left + width]
    return shifted


def flip(images: np.ndarray, chosen: np.ndarray) -> None:
    """Flips some images left to right, in place.

    Args:
      images: ``[N, H, W, C]``.
      chosen: ``[N]`` booleans.
    """
    for index in np.flatnonzero(chosen).tolist():
        cv2.flip(images[index], 1, dst=images[index])  # NumPy takes thirty times as long.


def center_crop(image: np.ndarray, size: int, margin: int) -> np.ndarray:
    """Resizes the shorter side to ``size + margin`` pixels and crops the central square."""
    image = _without_excess(image)
    height, width = image.shape[:2]
    scale = (size + margin) / min(height, width)
    image = resize(image, max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def _without_excess(image: np.ndarray) -> np.ndarray:
    """Cuts what no central crop shows off an extreme image, such as one of 1 x 65,500 pixels."""
    height, width = image.shape[:2]
    longest = _LARGEST_RATIO * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return image[top : top + longest, left : left + longest]


def padded_center_crop(image: np.ndarray, size: int, margin: int) -> np.ndarray:
    """Crops the same part of the image as ``center_crop``, then resizes it."""
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * size / (size + margin)))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return resize(image[top : top + side, left : left + side], size, size)


EVAL_CROPS: Mapping[str, Callable[[np.ndarray, int, int], np.ndarray]] = MappingProxyType(
    {"resize": center_crop, "padded": padded_center_crop}
)


def eval_crop(image: np.ndarray, size: int, margin: int = 0, crop: str = "resize") -> np.ndarray:
    """Crops and resizes an image for evaluation.

    The result shows the central square whose side is ``size / (size + margin)`` of the image's
    shorter side.

    Args:
      image: ``[H, W, C]`` uint8.
      size: side of the result, pixels.
      margin: pixels that are cropped from the resized image's shorter side, both ends together.
      crop: ``"resize"`` the image before cropping, or crop the ``"padded"`` center first.

    Returns:
      ``[size, size, C]`` uint8.

    Raises:
      InputError: no crop has this name.
    """
    _check(crop)
    return EVAL_CROPS[crop](image, size, margin)


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """The crop of a picture for evaluation: ``eval_crop`` with its settings.

    Attributes:
      size: side of the result, pixels.
      margin: pixels that are cropped from the resized image's shorter side, both ends together.
      crop: ``"resize"`` the image before cropping, or crop the ``"padded"`` center first.

    Raises:
      InputError: no crop has this name.
    """

    size: int
    margin: int = 0
    crop: str = "resize"

    def __post_init__(self) -> None:
        _check(self.crop)

    def __call__(self, picture: Picture) -> np.ndarray:
        """Returns the cropped picture, ``[size, size, C]`` uint8."""
        return eval_crop(picture.pixels(), self.size, self.margin, self.crop)


def _check(crop: str) -> None:
    if crop not in EVAL_CROPS:
        raise InputError(f"no crop {crop!r} for evaluation; there are {', '.join(EVAL_CROPS)}")
