"""Cropping: from pictures of any size to arrays of the model's size."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from nfnets_jax.data.decoding import Picture, resize


def inception_crop(picture: Picture, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of the picture as a square (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    The part covers 8 to 100% of the picture, uniformly, and is 3/4 to 4/3 times as wide as high,
    uniformly in the logarithm. Where ten draws do not fit, it is the largest central square.

    Args:
      picture: a JPEG is decoded at a part of its size if that is enough.
      size: side of the result, pixels.
      rng: of this image alone.

    Returns:
      ``[size, size, C]`` uint8.
    """
    top, left, height, width = _inception_box(picture.height, picture.width, rng)
    pixels = picture.pixels(shrink=min(height, width) / size)
    scale = pixels.shape[0] / picture.height, pixels.shape[1] / picture.width
    rows = slice(round(top * scale[0]), round((top + height) * scale[0]))
    columns = slice(round(left * scale[1]), round((left + width) * scale[1]))
    return resize(pixels[rows, columns], size, size)


def _inception_box(
    height: int, width: int, rng: np.random.Generator, attempts: int = 10
) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part, pixels."""
    for _ in range(attempts):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def shift(images: np.ndarray, offsets: np.ndarray, reflect: bool = False) -> np.ndarray:
    """Images moved by whole pixels.

    Args:
      images: ``[N, H, W, C]``.
      offsets: ``[N, 2]`` integers, down and to the right.
      reflect: whether to mirror what is left at the edges it moved from, instead of black there.
    """
    height, width = images.shape[1:3]
    margin = int(np.abs(offsets).max(initial=0))
    around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = np.pad(images, around, mode="reflect" if reflect else "constant")
    moved = np.empty_like(images)
    for index, (top, left) in enumerate((margin - offsets).tolist()):
        moved[index] = padded[index, top : top + height, left : left + width]
    return moved


def mirror(images: np.ndarray, chosen: np.ndarray) -> None:
    """Exchanges left and right, in place, of some of the images ``[N, H, W, C]``.

    ``chosen`` are ``[N]`` booleans.
    """
    for index in np.flatnonzero(chosen).tolist():
        cv2.flip(images[index], 1, dst=images[index])  # NumPy takes thirty times as long.


def center_crop(image: np.ndarray, size: int, margin: int) -> np.ndarray:
    """The central square of the image, its shorter side resized to ``size + margin`` pixels."""
    height, width = image.shape[:2]
    scale = (size + margin) / min(height, width)
    image = resize(image, max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def padded_center_crop(image: np.ndarray, size: int, margin: int) -> np.ndarray:
    """The same part of the image as ``center_crop``, cut out first and then resized."""
    height, width = image.shape[:2]
    side = round(min(height, width) * size / (size + margin))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return resize(image[top : top + side, left : left + side], size, size)


CROPS = ("inception", "pad")
TEST_CROPS: Mapping[str, Callable[[np.ndarray, int, int], np.ndarray]] = MappingProxyType(
    {"resize": center_crop, "padded": padded_center_crop}
)
