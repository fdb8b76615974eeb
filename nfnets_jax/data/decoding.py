"""Decoding and resizing of images.

Pixels are uint8 ``[H, W, C]``. They are normalized on the device, so that the transfer takes a
quarter of the bytes. libjpeg-turbo decodes JPEG, through simplejpeg, a quarter faster than OpenCV,
which decodes all other formats; what lies outside the wanted part is cut off before. nvimgcodec may
decode JPEG in its place.
"""

import contextlib
import dataclasses
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import simplejpeg

from nfnets_jax.data import nvimgcodec
from nfnets_jax.data.jpeg import Box, Cut, cut
from nfnets_jax.data.stages import timed_reading
from nfnets_jax.errors import InputError, UnreadableImageError

# Images are processed in parallel; threads within one would compete.
cv2.setNumThreads(1)
# The pipeline reports unreadable images itself.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Pillow warns of sizes, which Picture checks. A filter for one call is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

DECODERS = ("auto", "nvimgcodec")
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# EXIF's tag, and its values for images whose rows are columns.
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
      max_pixels: an image with more is not read. Its size is known from its header, before memory
        is taken: 57 bytes may say that they are four gigabytes.
      upright: whether to turn an image as the camera noted in its EXIF data. The usual ImageNet
        pipelines do not.
      decoder: of the parts of JPEGs that are wanted at full resolution, one of ``DECODERS``:
        ``"auto"`` is libjpeg-turbo. All else is left to the usual decoders.

    Raises:
      InputError: no decoder has this name, or it is not installed.
    """

    max_pixels: int = 10**8
    upright: bool = False
    decoder: str = "auto"

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise InputError(f"no decoder {self.decoder!r}; there are {', '.join(DECODERS)}")
        if self.decoder == "nvimgcodec" and (missing := nvimgcodec.missing()):
            raise InputError(missing)

    @property
    def on_gpu(self) -> bool:
        """Whether JPEGs are decoded on a GPU."""
        return self.decoder == "nvimgcodec" and nvimgcodec.has_gpu()


AS_USUAL = Reading()


class Picture:
    """An image whose size is known at once, and whose JPEG pixels are decoded on demand.

    Any file becomes RGB: CMYK, gray, palettes, transparency, 16 bits per channel; of an animation,
    its first image.

    Attributes:
      height: in pixels.
      width: in pixels.
    """

    def __init__(
        self,
        image: Path | bytes | np.ndarray,
        name: str,
        reading: Reading = AS_USUAL,
        keep: bool = False,
    ):
        """Reads the image, of a JPEG the header alone.

        Args:
          image: a file, its content, or pixels ``[H, W, C]`` uint8.
          name: identifies the image in messages.
          reading: limits and orientation of files.
          keep: decode a JPEG once and whole, as several parts of it will be wanted.

        Raises:
          UnreadableImageError: the file is missing, damaged, too large or not an image. ``pixels``
            raises it too.
        """
        self._name, self._keep, self._decoder = name, keep, reading.decoder
        self._jpeg: bytes | None = None
        self._pixels: np.ndarray | None = None
        self._orientation = 1
        if isinstance(image, np.ndarray):
            self._pixels = image
            self.height, self.width = image.shape[:2]
            return
        if isinstance(image, Path):
            try:
                with timed_reading():
                    image = image.read_bytes()
            except OSError as error:
                raise UnreadableImageError(f"{name}: {error.strerror}") from error
        if simplejpeg.is_jpeg(image):
            self._jpeg = image
        self.height, self.width = self._size(image)
        if self.height * self.width > reading.max_pixels:
            raise UnreadableImageError(
                f"{name}: {self.width} x {self.height} pixels are more than the "
                f"{reading.max_pixels:,} of max_pixels"
            )
        if reading.upright:
            self._orientation = _noted_orientation(image)
        if self._jpeg is None:
            self._pixels = self._upright(self._decoded(image))
            self.height, self.width = self._pixels.shape[:2]
        elif self._orientation in _SIDEWAYS:
            self.height, self.width = self.width, self.height

    @property
    def is_turned(self) -> bool:
        """Whether ``upright`` turned or mirrored the image."""
        return self._orientation != 1

    def pixels(self, shrink: float = 1.0) -> np.ndarray:
        """Decodes the pixels.

        Args:
          shrink: from 2 on, a JPEG is decoded to a resolution lower by up to this factor, in a
            fraction of the time; each pixel is the mean of those it replaces.

        Returns:
          ``[H, W, C]`` uint8; to be left unchanged, as the next call may return the same array.

        Raises:
          UnreadableImageError: the image is damaged.
        """
        return self.part(Box(0, 0, self.height, self.width), shrink)

    def part(self, box: Box, shrink: float = 1.0) -> np.ndarray:
        """Decodes a part of the pixels, and of a JPEG little else.

        Args:
          box: the part.
          shrink: as ``pixels`` takes it.

        Returns:
          ``[H, W, C]`` uint8.

        Raises:
          UnreadableImageError: the image is damaged, where it is decoded.
        """
        whole = Box(0, 0, self.height, self.width)
        if self._pixels is None and self._keep and shrink < 2:
            self._pixels = self._part_of_jpeg(whole, whole, 1)
        if self._pixels is not None and (self._jpeg is None or shrink < 2):
            return _slice(self._pixels, box, whole)
        return self._part_of_jpeg(box, whole, shrink)

    def _part_of_jpeg(self, box: Box, whole: Box, shrink: float) -> np.ndarray:
        assert self._jpeg is not None
        # A JPEG is decoded to so many eighths of its resolution.
        eighths = math.ceil(8 / shrink) if shrink >= 2 else 8
        if self._orientation != 1:
            turned = Box(0, 0, self.width, self.height)
            stored = turned if self._orientation in _SIDEWAYS else whole
            pixels = self._upright(self._decode_jpeg(self._jpeg, stored, eighths))
            return _slice(pixels, box, whole, eighths)
        if self._decoder == "nvimgcodec" and eighths == 8:
            with self._named_errors():
                decoded = nvimgcodec.decode(self._jpeg, box)
            if decoded is not None:
                return decoded
        with self._named_errors():
            encoded, around = cut(self._jpeg, box, shrink) or Cut(self._jpeg, whole)
        return _slice(self._decode_jpeg(encoded, around, eighths), box, around, eighths)

    def _decode_jpeg(self, encoded: bytes | bytearray, box: Box, eighths: int) -> np.ndarray:
        """Decodes a JPEG of the box's height and width to some eighths of them."""
        height, width = (-(-side * eighths // 8) for side in (box.height, box.width))
        scaled: dict[str, Any] = {}
        if eighths < 8:
            scaled = {"min_height": height, "min_width": width, "min_factor": 2}
        pixels = np.empty((height, width, 3), np.uint8)
        with self._named_errors():
            try:
                return simplejpeg.decode_jpeg(encoded, buffer=pixels, **scaled)
            except ValueError as error:
                if "extraneous bytes" not in str(error):  # Harmless to the image.
                    raise
            if encoded is not self._jpeg:  # A cut has them, and the pixels are in place.
                return pixels
            return simplejpeg.decode_jpeg(encoded, strict=False, **scaled)

    def _size(self, encoded: bytes) -> tuple[int, int]:
        """Returns height and width, from the header."""
        with self._named_errors():
            if self._jpeg is not None:
                height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            else:
                width, height = _open(encoded).size
            return height, width

    def _decoded(self, encoded: bytes) -> np.ndarray:
        with self._named_errors():
            decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), _FLAGS)
            if decoded is None:
                raise ValueError("not an image that OpenCV can decode")
            return decoded

    def _upright(self, image: np.ndarray) -> np.ndarray:
        """Turns and mirrors an image as EXIF's orientation, 1 to 8, says."""
        if self._orientation in _SIDEWAYS:
            image = image.swapaxes(0, 1)
        if self._orientation in (3, 4, 7, 8):
            image = image[::-1]
        if self._orientation in (2, 3, 6, 7):
            image = image[:, ::-1]
        return image if self._orientation == 1 else np.ascontiguousarray(image)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Makes whatever a decoder raises the error of this image."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableImageError(f"{self._name}: {reason}") from error


def _open(encoded: bytes) -> PIL.Image.Image:
    """Reads the header of a file."""
    if not encoded:
        raise ValueError("the file is empty")
    try:
        return PIL.Image.open(io.BytesIO(encoded))
    except PIL.UnidentifiedImageError as error:
        raise ValueError("not an image that OpenCV can decode") from error


def _noted_orientation(encoded: bytes) -> int:
    """Returns EXIF's orientation; 1, upright, if there is none that can be read."""
    try:
        orientation = _open(encoded).getexif().get(_ORIENTATION, 1)
    except Exception:  # What is no image is found when it is decoded.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _slice(pixels: np.ndarray, box: Box, around: Box, eighths: int = 8) -> np.ndarray:
    """Returns a box, some eighths of ``box`` in size, of the pixels of another box around it."""
    top, left = box.top - around.top, box.left - around.left
    return pixels[
        top * eighths // 8 : -(-(top + box.height) * eighths // 8),
        left * eighths // 8 : -(-(left + box.width) * eighths // 8),
    ]


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


def resize_part(
    image: np.ndarray, part: tuple[float, float, float, float], size: int
) -> np.ndarray:
    """Resizes a part of an image to a square by Pillow's bicubic interpolation, antialiased.

    Pixels beside the part count where the interpolation reaches them, as if the whole image were
    resized and then cropped.

    Args:
      image: ``[H, W, C]`` uint8.
      part: its left, top, right and bottom edge, pixels.
      size: side of the result, pixels.

    Returns:
      ``[size, size, C]`` uint8.
    """
    # Pillow takes three channels at once in less time than one after the other.
    bands = [image] if image.shape[2] == 3 else cv2.split(image)
    resized = [
        PIL.Image.fromarray(band).resize((size, size), PIL.Image.Resampling.BICUBIC, box=part)
        for band in bands
    ]
    return np.dstack([np.asarray(band) for band in resized])
