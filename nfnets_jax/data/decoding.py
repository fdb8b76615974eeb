"""From the bytes of an image file to pixels, and from a size in pixels to another.

Pixels are uint8 ``[H, W, C]`` throughout; they are normalized on the device, so that a quarter of
the bytes travels there. JPEG is read by libjpeg-turbo through simplejpeg, a quarter faster than by
OpenCV, which reads everything else.
"""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from nfnets_jax.errors import UnreadableImageError

# Many images are worked on at once; threads within one would only get in their way.
cv2.setNumThreads(1)
# What OpenCV cannot read is told by its record; its own words would stand between the lines.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class Picture:
    """An image: its size at once, its pixels when they are asked for.

    Files become RGB, whatever they hold: CMYK, gray, palettes, transparency, 16 bits a channel.
    What cameras note about turning the image is not heeded, as in the usual ImageNet pipelines.

    Attributes:
      height, width: pixels.
    """

    def __init__(self, image: Path | bytes | np.ndarray, name: str):
        """Looks at the image.

        Args:
          image: a file, its content, or pixels ``[H, W, C]`` uint8.
          name: for messages.

        Raises:
          UnreadableImageError: from here or from ``pixels``; there is no image, or a part of one.
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
                raise UnreadableImageError(f"{self._name}: no image that OpenCV can decode")
            self._pixels = decoded
        self.height, self.width = self._pixels.shape[:2]

    def pixels(self, shrink: float = 1.0) -> np.ndarray:
        """``[H, W, C]`` uint8; where ``shrink`` is 2 or more, perhaps fewer of them.

        A JPEG then comes smaller by up to that factor, averaged over what each pixel stands for,
        at a fraction of the time.
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
                if "extraneous bytes" not in str(error):  # These do no harm to the image.
                    raise
            return simplejpeg.decode_jpeg(self._jpeg, strict=False, **scaled)
        except ValueError as error:
            raise UnreadableImageError(f"{self._name}: {error}") from error


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic interpolation to ``[height, width, C]``, without smoothing when it gets smaller."""
    if image.shape[:2] == (height, width):
        return image
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return resized.reshape(height, width, image.shape[2])
