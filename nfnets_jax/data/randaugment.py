"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719), as NFNets are trained with it.

Each layer applies one of sixteen operations, uniformly, at the same magnitude ``m``. The ranges are
those of AutoAugment's ImageNet code, as in the NFNet paper (section 6.1): ``m = 10`` is the end of
a range, and larger magnitudes exceed it. Two operations therefore do *less* at a larger magnitude:
posterize keeps more bits, and solarize starts at brighter pixels.

Images are ``[H, W, 3]`` uint8, before and after. Geometric operations fill uncovered pixels with
mid-gray.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np

GRAY = 128
_LEVELS = np.arange(256)
# Weights of red, green and blue in the luminance of ITU-R BT.601.
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


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
    mixture = factor * np.eye(3, dtype=np.float32) + (1 - factor) * LUMINANCE
    return cv2.transform(image, mixture)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales the distance from the mean luminance: 0 makes the image gray, 1 keeps it."""
    mean = round(float(np.dot(cv2.mean(image)[:3], LUMINANCE)))
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
    shifted = np.full_like(image, GRAY)
    length = max(0, len(image) - abs(pixels))
    up, down = max(0, pixels), max(0, -pixels)
    shifted[down : down + length] = image[up : up + length]
    return shifted


def cutout(image: np.ndarray, half: int, center: tuple[int, int]) -> np.ndarray:
    """Grays the part inside the image of a square of side ``2 * half`` (arXiv:1708.04552)."""
    row, column = center
    covered = image.copy()
    covered[max(0, row - half) : row + half, max(0, column - half) : column + half] = GRAY
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
        borderValue=(GRAY, GRAY, GRAY),
    )


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


_Parameters = tuple[float, ...]
_MOST_PARAMETERS = 3


class Drawn(NamedTuple):
    """An operation with its parameters.

    Attributes:
      operation: its position in ``NAMES``.
      parameters: at most three numbers.
    """

    operation: int
    parameters: _Parameters


class Operation(NamedTuple):
    """An operation, and how its parameters are drawn.

    Attributes:
      apply: takes an image and the parameters; returns an image.
      draw: takes a magnitude, random numbers of the image and its shape; returns the parameters.
    """

    apply: Callable[..., np.ndarray]
    draw: Callable[[float, np.random.Generator, tuple[int, ...]], _Parameters]

    def __call__(self, image: np.ndarray, m: float, rng: np.random.Generator) -> np.ndarray:
        """Applies the operation at magnitude ``m`` to an image ``[H, W, 3]`` uint8."""
        return self.apply(image, *self.draw(m, rng, image.shape))


def _nothing(m: float, rng: np.random.Generator, shape: tuple[int, ...]) -> _Parameters:
    return ()


def _factor(m: float, rng: np.random.Generator, shape: tuple[int, ...]) -> _Parameters:
    return (0.18 * m + 0.1,)


def _half_and_place(m: float, rng: np.random.Generator, shape: tuple[int, ...]) -> _Parameters:
    return int(4 * m), int(rng.integers(shape[0])), int(rng.integers(shape[1]))


# A geometric operation goes either way at random.
OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "auto_contrast": Operation(auto_contrast, _nothing),
        "equalize": Operation(equalize, _nothing),
        "invert": Operation(invert, _nothing),
        "rotate": Operation(rotate, lambda m, rng, shape: (_sign(rng) * 3 * m,)),
        "posterize": Operation(posterize, lambda m, rng, shape: (int(0.4 * m),)),
        "solarize": Operation(solarize, lambda m, rng, shape: (int(25.6 * m),)),
        "color": Operation(color, _factor),
        "contrast": Operation(contrast, _factor),
        "brightness": Operation(brightness, _factor),
        "sharpness": Operation(sharpness, _factor),
        "shear_x": Operation(shear_x, lambda m, rng, shape: (_sign(rng) * 0.03 * m,)),
        "shear_y": Operation(shear_y, lambda m, rng, shape: (_sign(rng) * 0.03 * m,)),
        "translate_x": Operation(translate_x, lambda m, rng, shape: (_sign(rng) * int(10 * m),)),
        "translate_y": Operation(translate_y, lambda m, rng, shape: (_sign(rng) * int(10 * m),)),
        "cutout": Operation(
            lambda image, half, row, column: cutout(image, half, (row, column)), _half_and_place
        ),
        "solarize_add": Operation(solarize_add, lambda m, rng, shape: (int(11 * m),)),
    }
)
NAMES = tuple(OPERATIONS)


def draw(
    layers: int, magnitude: float, shape: tuple[int, ...], rng: np.random.Generator
) -> list[Drawn]:
    """Draws the operations of an image, uniformly, and their parameters.

    Args:
      layers: how many operations; one may be drawn more than once.
      magnitude: of each; 10 is the end of AutoAugment's ranges.
      shape: of the image, ``(H, W, 3)``.
      rng: random numbers of this image.
    """
    return [
        Drawn(choice, OPERATIONS[NAMES[choice]].draw(magnitude, rng, shape))
        for choice in rng.integers(len(NAMES), size=layers).tolist()
    ]


def as_numbers(operations: Sequence[Drawn]) -> np.ndarray:
    """Returns drawn operations as ``[layers, 4]`` float32: the operation and its parameters."""
    padding = (0.0,) * _MOST_PARAMETERS
    rows = [
        (drawn.operation, *drawn.parameters, *padding)[: 1 + len(padding)] for drawn in operations
    ]
    return np.array(rows, np.float32)


def apply(image: np.ndarray, operations: Sequence[Drawn]) -> np.ndarray:
    """Applies drawn operations to an image ``[H, W, 3]`` uint8, one after the other."""
    for operation, parameters in operations:
        image = OPERATIONS[NAMES[operation]].apply(image, *parameters)
    return image


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
    return apply(image, draw(layers, magnitude, image.shape, rng))
