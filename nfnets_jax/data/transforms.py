"""From a record to an image of the model's size: decoding, cropping, flipping, resizing.

Images stay uint8 ``[H, W, C]`` throughout; they are normalized on the device, so that a quarter of
the bytes travels there.
"""

import dataclasses
import math
from typing import Any

import cv2
import grain
import numpy as np

from nfnets_jax.data.sources import Record
from nfnets_jax.errors import InputError

CROPS = ("inception", "pad")


def decode(record: Record) -> np.ndarray:
    """The image of a record, ``[H, W, C]`` uint8; files become RGB, whatever they hold.

    Raises:
      InputError: the bytes are no image that OpenCV can decode.
    """
    if isinstance(record["image"], np.ndarray):
        return record["image"]
    encoded = np.frombuffer(record["image"], np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB) if encoded.size else None
    if image is None:
        raise InputError(f"{record['name']} is not a readable image: repair it or take it away")
    return image


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic interpolation to ``[height, width, C]``."""
    if image.shape[:2] == (height, width):
        return image
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return resized.reshape(height, width, image.shape[2])


def inception_crop(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    attempts: int = 10,
) -> np.ndarray:
    """A random part of the image as a square (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Args:
      image: ``[H, W, C]``.
      size: side of the result, pixels.
      rng: of this image alone.
      area: least and largest share of the image that the part covers, drawn uniformly.
      aspect: least and largest width over height of the part, drawn uniformly in the logarithm.
      attempts: draws that may fall outside the image; then it is the largest central square.
    """
    height, width = image.shape[:2]
    for _ in range(attempts):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return resize(image[top : top + h, left : left + w], size, size)
    return center_crop(image, size, margin=0)


def pad_crop(image: np.ndarray, size: int, padding: int, rng: np.random.Generator) -> np.ndarray:
    """The image at ``size``, moved by up to ``padding`` pixels each way, black where it left."""
    image = resize(image, size, size)
    top, left = rng.integers(2 * padding + 1, size=2)
    padded = np.zeros((size + 2 * padding, size + 2 * padding, image.shape[2]), np.uint8)
    padded[padding : padding + size, padding : padding + size] = image
    return padded[top : top + size, left : left + size]


def center_crop(image: np.ndarray, size: int, margin: int) -> np.ndarray:
    """The central square of the image, its shorter side resized to ``size + margin`` pixels."""
    height, width = image.shape[:2]
    scale = (size + margin) / min(height, width)
    image = resize(image, max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.transforms.RandomMap):
    """A record to ``{"image": [size, size, C] uint8, "label": int32}``, another one every epoch.

    Attributes:
      size: side of the image, pixels.
      crop: ``"inception"`` for photographs, ``"pad"`` for small images that are already cut.
      padding: of ``"pad"``, pixels.
      flip: mirror every other image, left to right.
    """

    size: int
    crop: str
    padding: int
    flip: bool

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise InputError(f"no crop {self.crop!r}; data.crop is one of {', '.join(CROPS)}")

    def random_map(self, element: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Applies the transformation with this element's own random numbers."""
        image = decode(element)
        if self.crop == "inception":
            image = inception_crop(image, self.size, rng)
        else:
            image = pad_crop(image, self.size, self.padding, rng)
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return {"image": np.ascontiguousarray(image), "label": np.int32(element["label"])}


@dataclasses.dataclass(frozen=True)
class EvalTransform(grain.transforms.Map):
    """A record to ``{"image": [size, size, C] uint8, "label": int32}``, always the same.

    ``margin`` is what is cut off around the centre, in pixels of the resized image, both sides
    together.
    """

    size: int
    margin: int

    def map(self, element: Record) -> dict[str, Any]:
        """Applies the transformation."""
        image = center_crop(decode(element), self.size, self.margin)
        return {"image": np.ascontiguousarray(image), "label": np.int32(element["label"])}
