"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719), as NFNets are trained with it.

Sixteen operations, of which each layer takes one, uniformly, at the one magnitude ``m``. Ranges and
the order of NFNets (section 6.1) are those of AutoAugment's ImageNet code: a magnitude of 10 is
their end, and more goes beyond it. Two of them therefore do *less* at a larger magnitude: posterize
keeps more bits, solarize starts at brighter pixels.

Images are ``[H, W, 3]`` uint8, before and after. What an operation uncovers is mid-gray.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

_GRAY = 128
_LEVELS = np.arange(256)
# Red, green and blue in the luminance of ITU-R BT.601.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to the whole range from 0 to 255."""
    # Over rows first: over both axes at once NumPy takes a hundred times as long.
    rows = image.reshape(len(image), -1)
    low, high = (of(axis=0).reshape(-1, 3) for of in (rows.min, rows.max))
    low, high = low.min(axis=0).astype(np.float32), high.max(axis=0).astype(np.float32)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    offset = np.where(high > low, -low * scale, 0)
    return cv2.transform(image, np.column_stack([np.diag(scale), offset]))


def equalize(image: np.ndarray) -> np.ndarray:
    """Makes the levels of each channel about equally frequent."""
    tables = []
    for channel in cv2.split(image):
        histogram = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (channel.size - histogram[np.flatnonzero(histogram)[-1]]) // 255
        below = np.cumsum(histogram) - histogram
        tables.append(np.minimum((step // 2 + below) // step, 255) if step else _LEVELS)
    return _by_tables(image, tables)


def invert(image: np.ndarray) -> np.ndarray:
    """The negative."""
    return ~image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest bits of each pixel, 1 to 8 of them."""
    return image & np.uint8(0xFF << (8 - min(max(bits, 1), 8)) & 0xFF)


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts the pixels from a threshold on; from 256 on there are none."""
    # Multiplying and exclusive or take a tenth of the time of np.where.
    return image ^ ((image >= threshold).view(np.uint8) * np.uint8(255))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Makes the pixels of the darker half brighter by so many levels."""
    return cv2.add(image, (image < 128).view(np.uint8) * np.uint8(min(addition, 255)))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Saturation: 0 is gray, 1 the image, more than 1 stronger colors."""
    mixture = factor * np.eye(3, dtype=np.float32) + (1 - factor) * _LUMINANCE
    return cv2.transform(image, mixture)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Distance from the mean luminance: 0 is gray, 1 the image, more than 1 stronger contrast."""
    mean = round(float(np.dot(cv2.mean(image)[:3], _LUMINANCE)))
    return cv2.addWeighted(image, factor, image, 0, (1 - factor) * mean)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """0 is black, 1 the image, more than 1 brighter."""
    return cv2.addWeighted(image, factor, image, 0, 0)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """0 is smooth, 1 the image, more than 1 sharper; the border stays.

    Smooth is the mean over 3x3 pixels in which the middle one counts five times.
    """
    # Such a mean is 9 parts of the plain mean and 4 of the image.
    own = factor + (1 - factor) * 4 / 13
    sharpened = cv2.addWeighted(image, own, cv2.blur(image, (3, 3)), 1 - own, 0)
    for edge in np.s_[:1, :], np.s_[-1:, :], np.s_[:, :1], np.s_[:, -1:]:
        sharpened[edge] = image[edge]
    return sharpened


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Counterclockwise about the centre."""
    height, width = image.shape[:2]
    return _affine(image, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1))


def shear_x(image: np.ndarray, factor: float) -> np.ndarray:
    """Each row moves to the left by ``factor`` pixels more than the one above it."""
    return _affine(image, [[1, -factor, -factor / 2], [0, 1, 0]])


def shear_y(image: np.ndarray, factor: float) -> np.ndarray:
    """Each column moves up by ``factor`` pixels more than the one left of it."""
    return _affine(image, [[1, 0, 0], [-factor, 1, -factor / 2]])


def translate_x(image: np.ndarray, pixels: int) -> np.ndarray:
    """To the left."""
    return translate_y(image.swapaxes(0, 1), pixels).swapaxes(0, 1)


def translate_y(image: np.ndarray, pixels: int) -> np.ndarray:
    """Up."""
    moved = np.full_like(image, _GRAY)
    length = max(0, len(image) - abs(pixels))
    up, down = max(0, pixels), max(0, -pixels)
    moved[down : down + length] = image[up : up + length]
    return moved


def cutout(image: np.ndarray, half: int, center: tuple[int, int]) -> np.ndarray:
    """Grays a square of twice ``half`` pixels, as far as it is inside (arXiv:1708.04552)."""
    row, column = center
    covered = image.copy()
    covered[max(0, row - half) : row + half, max(0, column - half) : column + half] = _GRAY
    return covered


def _by_tables(image: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    """Replaces the levels of each channel by those of its table ``[256]``."""
    channels = zip(cv2.split(image), tables, strict=True)
    return cv2.merge([cv2.LUT(channel, table.astype(np.uint8)) for channel, table in channels])


def _affine(image: np.ndarray, forward: np.ndarray | list[list[float]]) -> np.ndarray:
    """Moves each pixel by a matrix ``[2, 3]`` on its column and row, to the nearest place."""
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image,
        np.asarray(forward, np.float64),
        (width, height),
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(_GRAY, _GRAY, _GRAY),
    )


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _place(image: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(image.shape[0])), int(rng.integers(image.shape[1]))


Operation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

# Each at magnitude m. One that moves things does so to either side.
OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "auto_contrast": lambda image, m, rng: auto_contrast(image),
        "equalize": lambda image, m, rng: equalize(image),
        "invert": lambda image, m, rng: invert(image),
        "rotate": lambda image, m, rng: rotate(image, _sign(rng) * 3 * m),
        "posterize": lambda image, m, rng: posterize(image, int(0.4 * m)),
        "solarize": lambda image, m, rng: solarize(image, int(25.6 * m)),
        "color": lambda image, m, rng: color(image, 0.18 * m + 0.1),
        "contrast": lambda image, m, rng: contrast(image, 0.18 * m + 0.1),
        "brightness": lambda image, m, rng: brightness(image, 0.18 * m + 0.1),
        "sharpness": lambda image, m, rng: sharpness(image, 0.18 * m + 0.1),
        "shear_x": lambda image, m, rng: shear_x(image, _sign(rng) * 0.03 * m),
        "shear_y": lambda image, m, rng: shear_y(image, _sign(rng) * 0.03 * m),
        "translate_x": lambda image, m, rng: translate_x(image, _sign(rng) * int(10 * m)),
        "translate_y": lambda image, m, rng: translate_y(image, _sign(rng) * int(10 * m)),
        "cutout": lambda image, m, rng: cutout(image, int(4 * m), _place(image, rng)),
        "solarize_add": lambda image, m, rng: solarize_add(image, int(11 * m)),
    }
)
_NAMES = tuple(OPERATIONS)


def randaugment(
    image: np.ndarray, layers: int, magnitude: float, rng: np.random.Generator
) -> np.ndarray:
    """Applies so many operations, one after the other.

    Args:
      image: ``[H, W, 3]`` uint8.
      layers: how many; an operation may come more than once.
      magnitude: of all of them; 10 is the end of AutoAugment's ranges.
      rng: of this image alone.
    """
    for choice in rng.integers(len(_NAMES), size=layers):
        image = OPERATIONS[_NAMES[choice]](image, magnitude, rng)
    return image
