"""Normalization of pixels by each channel's mean and standard deviation over a dataset."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import jax

Array = TypeVar("Array", np.ndarray, "jax.Array")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = MappingProxyType(
    {
        "digits": ((0.305,), (0.376,)),
        "tfds:cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
        "synthetic": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    }
)


def mean_and_std(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation of a dataset's pixels in [0, 1], per channel.

    Args:
      dataset: its name, as ``open_dataset`` takes it; one without statistics of its own, such as
        ``folder``, has ImageNet's.
    """
    return _STATISTICS.get(dataset, (IMAGENET_MEAN, IMAGENET_STD))


def normalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Scales pixels to about zero mean and unit variance.

    Args:
      images: ``[..., H, W, C]`` uint8, of NumPy or JAX.
      mean, std: per channel, of pixels in [0, 1].

    Returns:
      ``[..., H, W, C]`` float32.
    """
    pixels = images.astype(np.float32) / 255
    return (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
