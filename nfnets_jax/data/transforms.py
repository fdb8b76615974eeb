"""Crops, shifts and flips: from images of any size to arrays of the model's size."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from nfnets_jax.data.decoding import Picture, resize, resize_part
from nfnets_jax.data.jpeg import Box
from nfnets_jax.errors import InputError

_ATTEMPTS = 10
# Of a random crop: shares of the picture's area, and widths over heights.
_SMALLEST_AREA, _SMALLEST_PART = 0.08, 0.1
_RATIOS = 3 / 4, 4 / 3
# Pixels around the crop that replaces a random one, both sides together, at the size of the result.
_PADDING = 32
# Of an image's sides, which is resized whole.
_LARGEST_RATIO = 16


def distorted_crop(picture: Picture, size: int, rng: np.random.Generator) -> np.ndarray:
    """Crops a random part of a picture to a square, as NFNets are trained.

    The part is a ``distorted_box``, or where there is none the central square that
    ``padded_center_crop`` shows at a margin of 32 pixels.

    Args:
      picture: decoded at a fraction of its resolution where that suffices.
      size: side of the result, pixels.
      rng: random numbers of this image.

    Returns:
      ``[size, size, C]`` uint8.
    """
    box = distorted_box(picture.height, picture.width, rng)
    return _resized(
        picture, box or _padded_box(picture.height, picture.width, size, _PADDING), size
    )


def distorted_box(height: int, width: int, rng: np.random.Generator) -> Box | None:
    """Draws a part of a picture as TensorFlow's ``sample_distorted_bounding_box`` draws it.

    The width over the height is uniform in [3/4, 4/3]. Then the height is uniform between that of
    8% of the area and the largest that fits, so that small parts are more frequent than large
    ones. A part below 10% of the area is drawn again, up to ten times in all, as NFNets are trained
    with ``min_object_covered=0.1``.

    Args:
      height, width: of the picture, pixels.
      rng: random numbers of this image.

    Returns:
      Top, left, height and width; None if ten parts are too small, or if the part is the whole
      picture.
    """
    area = height * width
    for _ in range(_ATTEMPTS):
        ratio = rng.uniform(*_RATIOS)
        # The largest height whose width, height times ratio, rounds to at most the picture's.
        fitting = math.ceil((width + 0.5) / ratio) - 1
        largest = min(round(math.sqrt(area / ratio)), height, fitting)
        smallest = min(round(math.sqrt(_SMALLEST_AREA * area / ratio)), largest)
        h = int(rng.integers(smallest, largest + 1))
        w = min(round(h * ratio), width)
        if h * w >= max(1, _SMALLEST_PART * area):
            if (h, w) == (height, width):
                return None
            # TensorFlow draws from as many places as there are pixels over, so never the last.
            top, left = (int(rng.integers(max(1, over))) for over in (height - h, width - w))
            return Box(top, left, h, w)
    return None


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
    return _resized(picture, _inception_box(picture.height, picture.width, rng), size)


def _resized(picture: Picture, box: Box, size: int) -> np.ndarray:
    """Resizes a part of a picture, decoded at a fraction of its resolution where that suffices."""
    return resize(picture.part(box, shrink=min(box.height, box.width) / size), size, size)


def _inception_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """Draws the part."""
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(_SMALLEST_AREA, 1.0)
        ratio = math.exp(rng.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return Box(int(top), int(left), h, w)
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def pad(images: np.ndarray, margin: int, reflect: bool = False) -> np.ndarray:
    """Pads images ``[N, H, W, C]`` on all sides by ``margin`` pixels, black or mirrored."""
    around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    return np.pad(images, around, mode="reflect" if reflect else "constant")


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
    padded = pad(images, margin, reflect)
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


def squashed_crop(image: np.ndarray, size: int, margin: int) -> np.ndarray:
    """Resizes both sides to ``size + margin`` pixels and crops the central square.

    The result shows ``size / (size + margin)`` of either side, and its pixels are those of Pillow's
    bicubic interpolation.
    """
    height, width = image.shape[:2]
    whole, start = size + margin, (margin + 1) // 2
    left, right = (edge * width / whole for edge in (start, start + size))
    top, bottom = (edge * height / whole for edge in (start, start + size))
    return resize_part(image, (left, top, right, bottom), size)


def padded_center_crop(image: np.ndarray, size: int, margin: int) -> np.ndarray:
    """Crops the same part of the image as ``center_crop``, then resizes it."""
    top, left, height, width = _padded_box(image.shape[0], image.shape[1], size, margin)
    return resize(image[top : top + height, left : left + width], size, size)


def _padded_box(height: int, width: int, size: int, margin: int) -> Box:
    """Returns the central square of ``size / (size + margin)`` of the shorter side."""
    side = max(1, min(height, width) * size // (size + margin))
    return Box((height - side + 1) // 2, (width - side + 1) // 2, side, side)


EVAL_CROPS: Mapping[str, Callable[[np.ndarray, int, int], np.ndarray]] = MappingProxyType(
    {"resize": center_crop, "squash": squashed_crop, "padded": padded_center_crop}
)


def eval_crop(image: np.ndarray, size: int, margin: int = 0, crop: str = "resize") -> np.ndarray:
    """Crops and resizes an image for evaluation.

    The result shows the central square whose side is ``size / (size + margin)`` of the image's
    shorter side; with ``"squash"``, the central rectangle of that share of both sides.

    Args:
      image: ``[H, W, C]`` uint8.
      size: side of the result, pixels.
      margin: pixels that are cropped from the resized image's shorter side, both ends together.
      crop: a key of ``EVAL_CROPS``: ``"resize"`` the shorter side before cropping, or ``"squash"``
        both sides, or crop the ``"padded"`` center first.

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
      crop: a key of ``EVAL_CROPS``, as ``eval_crop`` takes it.

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
