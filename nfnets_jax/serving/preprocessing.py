"""Turns a photograph into the pixels that a network is tested with."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from nfnets_jax.data.decoding import Picture, Reading
from nfnets_jax.data.normalization import normalize
from nfnets_jax.data.transforms import CenterCrop
from nfnets_jax.models.registry import Model, create_model

# The ImageNet configurations cut so much off a resized photograph, both sides together, in pixels.
# Small images have no margin to cut off.
_MARGIN = 32
_SMALLEST_PHOTOGRAPH = 97


@dataclasses.dataclass(frozen=True)
class TestView(CenterCrop):
    """The crop of a picture that a network is tested with.

    Attributes:
      size, margin, crop: as for ``CenterCrop``.
      channels: 3, or 1 for gray.
    """

    __test__ = False  # pytest would take it for a test.
    channels: int = 3

    def __call__(self, picture: Picture) -> np.ndarray:
        """Returns ``[size, size, channels]`` uint8."""
        image = super().__call__(picture)
        if image.shape[2] == self.channels:
            return image
        if self.channels == 1:
            return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        return np.repeat(image, self.channels, axis=2)


def published_view(model: Model, size: int | None = None) -> TestView:
    """Returns the view of a model as published, on ImageNet.

    Args:
      model: any.
      size: side of the images, pixels, if not the model's test size.
    """
    data = model.data_config
    size = size or data.test_size
    margin = _MARGIN if size >= _SMALLEST_PHOTOGRAPH else 0
    return TestView(size, margin, data.test_crop, channels=len(data.mean))


def preprocess(image: str | Path | bytes | np.ndarray, name_or_model: str | Model) -> np.ndarray:
    """Turns an image upright, crops, resizes and normalizes it as a model is tested.

    Args:
      image: the path of a file, its content, or pixels ``[H, W, C]`` uint8.
      name_or_model: the model or its name.

    Returns:
      ``[size, size, C]`` float32, for ``Model.apply`` in a batch.

    Raises:
      InputError: no such model.
      UnreadableImageError: the image cannot be read.

    Example:
      >>> preprocess(np.zeros((300, 400, 3), np.uint8), "nfnet_f0").shape
      (256, 256, 3)
    """
    model = create_model(name_or_model) if isinstance(name_or_model, str) else name_or_model
    source = Path(image) if isinstance(image, str) else image
    name = str(source) if isinstance(source, Path) else "the image"
    pixels = published_view(model)(Picture(source, name, Reading(upright=True)))
    data = model.data_config
    return normalize(pixels, data.mean, data.std)
