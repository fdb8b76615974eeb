"""Decoding and resizing of images.

Pixels are uint8 ``[H, W, C]``. They are normalized on the device, so that the transfer takes a
quarter of the bytes. libjpeg-turbo decodes JPEG, through simplejpeg, a quarter faster than OpenCV,
which decodes all other formats.
"""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from nfnets_jax.errors import UnreadableImageError

# Images are processed in parallel; threads within one would compete.
cv2.setNumThreads(1)
# The pipeline reports unreadable images itself.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class Picture:
    """An image whose size is known at once, and whose JPEG pixels are decoded on demand.

    Any file becomes RGB: CMYK, gray, palettes, transparency, 16 bits per channel. The orientation
    that a camera noted is ignored, as in the usual ImageNet pipelines.

    Attributes:
      height: in pixels.
      width: in pixels.
    """

    def __init__(self, image: Path | bytes | np.ndarray, name: str):
        """Reads the image, of a JPEG the header alone.

        Args:
          image: a file, its content, or pixels ``[H, W, C]`` uint8.
          name: identifies the image in messages.

        Raises:
          UnreadableImageError: the file is missing, damaged or not an image. ``pixels`` raises it
            too.
        """
        self._name = name
        self._jpeg: bytes | None = None
        if isinstance(image, Path):
            try:
                image = image.read_bytes()
            except OSError as error:
                raise UnreadableImageError(f"{name}: {error.strerror}") from error
        if isinstance(image, np.ndarray):
            self._pixels = image
        elif simplejpeg.is_jpeg(image):
            self._jpeg = image
            try:
                self.height, self.width, *_ = simplejpeg.decode_jpeg_header(image)
            except ValueError as error:
                raise UnreadableImageError(f"{self._name}: {error}") from error
            return
        else:
            encoded = np.frombuffer(image, np.uint8)
            decoded = cv2.imdecode(encoded, _FLAGS) if encoded.size else None
            if decoded is None:
                raise UnreadableImageError(f"{self._name}: not an image that OpenCV can decode")
            self._pixels = decoded
        self.height, self.width = self._pixels.shape[:2]

    def pixels(self, shrink: float = 1.0) -> np.ndarray:
        """Decodes the pixels.

        Args:
          shrink: from 2 on, a JPEG is decoded to a resolution lower by up to this factor, in a
            fraction of the time; each pixel is the mean of those it replaces.

        Returns:
          ``[H, W, C]`` uint8.

        Raises:
          UnreadableImageError: the image is damaged.
        """
        if self._jpeg is None:
            return self._pixels
        scaled: dict[str, Any] = {}
        if shrink >= 2:
            scaled["min_height"] = math.ceil(self.height / shrink)
            scaled["min_width"] = math.ceil(self.width / shrink)
            scaled["min_factor"] = 2
        try:
            try:
                return simplejpeg.decode_jpeg(self._jpeg, **scaled)
            except ValueError as error:
                if "extraneous bytes" not in str(error):  # Harmless to the image.
                    raise
            return simplejpeg.decode_jpeg(self._jpeg, strict=False, **scaled)
        except ValueError as error:
            raise UnreadableImageError(f"{self._name}: {error}") from error


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image by bicubic interpolation, without antialiasing.

    Args:
      image: ``[H, W, C]`` uint8.
      height: of the result, pixels.
      width: of the result, pixels.

    Returns:
      ``[height, width, C]`` uint8.
    """
    if image.shape[:2] == (height, width):
        return image
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return resized.reshape(height, width, image.shape[2])
