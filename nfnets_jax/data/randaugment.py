"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719), as NFNets are trained with it.

Each layer applies one of sixteen operations, uniformly, at the same magnitude ``m``. The ranges are
those of AutoAugment's ImageNet code, as in the NFNet paper (section 6.1): ``m = 10`` is the end of
a range, and larger magnitudes exceed it. Two operations therefore do *less* at a larger magnitude:
posterize keeps more bits, and solarize starts at brighter pixels.

Images are ``[H, W, 3]`` uint8, before and after. Geometric operations fill uncovered pixels with
mid-gray.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

_GRAY = 128
_LEVELS = np.arange(256)
# Weights of red, green and blue in the luminance of ITU-R BT.601.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to the whole range from 0 to 255."""
    # Rows first: over both axes at once NumPy takes a hundred times as long.
    rows = image.reshape(len(image), -1)
    low, high = (extreme(axis=0).reshape(-1, 3) for extreme in (rows.min, rows.max))
    low, high = low.min(axis=0).astype(np.float32), high.max(axis=0).astype(np.float32)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    offset = np.where(high > low, -low * scale, 0)
    return cv2.transform(image, np.column_stack([np.diag(scale), offset]))


def equalize(image: np.ndarray) -> np.ndarray:
    """Equalizes the histogram of each channel."""
    tables = []
    for channel in cv2.split(image):
        histogram = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (channel.size - histogram[np.flatnonzero(histogram)[-1]]) // 255
        below = np.cumsum(histogram) - histogram
        tables.append(np.minimum((step // 2 + below) // step, 255) if step else _LEVELS)
    return _by_tables(image, tables)


def invert(image: np.ndarray) -> np.ndarray:
    """Inverts every pixel."""
    return ~image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest 1 to 8 bits of each pixel and clears the others."""
    return image & np.uint8(0xFF << (8 - min(max(bits, 1), 8)) & 0xFF)


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts the pixels from a threshold on; a threshold of 256 inverts none."""
    # A product and an exclusive or take a tenth of the time of np.where.
    return image ^ ((image >= threshold).view(np.uint8) * np.uint8(255))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Adds ``addition`` levels to the pixels below 128."""
    return cv2.add(image, (image < 128).view(np.uint8) * np.uint8(min(addition, 255)))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the saturation: 0 makes the image gray, 1 keeps it."""
    mixture = factor * np.eye(3, dtype=np.float32) + (1 - factor) * _LUMINANCE
    return cv2.transform(image, mixture)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the distance from the mean luminance: 0 makes the image gray, 1 keeps it."""
    mean = round(float(np.dot(cv2.mean(image)[:3], _LUMINANCE)))
    return cv2.addWeighted(image, factor, image, 0, (1 - factor) * mean)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales every pixel: 0 makes the image black, 1 keeps it."""
    return cv2.addWeighted(image, factor, image, 0, 0)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Sharpens the image, except its border: 0 smooths it, 1 keeps it.

    The smooth image is the mean over 3x3 pixels in which the center counts five times.
    """
    # This mean is 9/13 of the plain mean and 4/13 of the image.
    own = factor + (1 - factor) * 4 / 13
    sharpened = cv2.addWeighted(image, own, cv2.blur(image, (3, 3)), 1 - own, 0)
    for edge in np.s_[:1, :], np.s_[-1:, :], np.s_[:, :1], np.s_[:, -1:]:
        sharpened[edge] = image[edge]
    return sharpened


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates the image counterclockwise about its center."""
    height, width = image.shape[:2]
    return _affine(image, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1))


def shear_x(image: np.ndarray, factor: float) -> np.ndarray:
    """Shifts each row to the left by ``factor`` pixels more than the row above."""
    return _affine(image, [[1, -factor, -factor / 2], [0, 1, 0]])


def shear_y(image: np.ndarray, factor: float) -> np.ndarray:
    """Shifts each column up by ``factor`` pixels more than the column to its left."""
    return _affine(image, [[1, 0, 0], [-factor, 1, -factor / 2]])


def translate_x(image: np.ndarray, pixels: int) -> np.ndarray:
    """Shifts the image to the left."""
    return translate_y(image.swapaxes(0, 1), pixels).swapaxes(0, 1)


def translate_y(image: np.ndarray, pixels: int) -> np.ndarray:
    """Shifts the image up."""
    shifted = np.full_like(image, _GRAY)
    length = max(0, len(image) - abs(pixels))
    up, down = max(0, pixels), max(0, -pixels)
    shifted[down : down + length] = image[up : up + length]
    return shifted


def cutout(image: np.ndarray, half: int, center: tuple[int, int]) -> np.ndarray:
    """Grays the part inside the image of a square of side ``2 * half`` (arXiv:1708.04552)."""
    row, column = center
    covered = image.copy()
    covered[max(0, row - half) : row + half, max(0, column - half) : column + half] = _GRAY
    return covered


def _by_tables(image: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    """Maps the levels of each channel by its table, ``[256]``."""
    channels = zip(cv2.split(image), tables, strict=True)
    return cv2.merge([cv2.LUT(channel, table.astype(np.uint8)) for channel, table in channels])


def _affine(image: np.ndarray, forward: np.ndarray | list[list[float]]) -> np.ndarray:
    """Moves each pixel by a matrix ``[2, 3]`` on its column and row, without interpolation."""
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

# Each at magnitude m; a geometric operation goes either way at random.
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
    """Applies random operations, one after the other.

    Args:
      image: ``[H, W, 3]`` uint8.
      layers: how many operations; one may be drawn more than once.
      magnitude: of each; 10 is the end of AutoAugment's ranges.
      rng: random numbers of this image.

    Returns:
      ``[H, W, 3]`` uint8.
    """
    for choice in rng.integers(len(_NAMES), size=layers):
        image = OPERATIONS[_NAMES[choice]](image, magnitude, rng)
    return image
