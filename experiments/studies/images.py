"""Opens the images that studies train on: CIFAR-10 at any resolution, or the embedded digits."""

import dataclasses
from pathlib import Path

import numpy as np

from nfnets_jax.data.sources import ArraySource, Dataset, open_dataset
from nfnets_jax.errors import InputError

_DIGITS_SIDE = 8


def name(data_dir: Path | None) -> str:
    """Returns the name of the dataset, as ``open_dataset`` takes it."""
    return "tfds:cifar10" if data_dir else "digits"


def side(data_dir: Path | None, wanted: int) -> int:
    """Returns the side of the images in pixels: the wanted one, or that of the digits."""
    return wanted if data_dir else _DIGITS_SIDE


def open_images(data_dir: Path | None, wanted: int = 32) -> Dataset:
    """Opens CIFAR-10, or without ``data_dir`` the digits, which keep their 8 pixels.

    Args:
      data_dir: data directory of TensorFlow Datasets.
      wanted: side of CIFAR-10's images in pixels, a divisor of 32; means of squares of pixels make
        them smaller.

    Raises:
      InputError: CIFAR-10 is not in ``data_dir``, or its images cannot be made so small.
    """
    dataset = open_dataset(name(data_dir), str(data_dir or ""))
    if data_dir is None:
        return dataset
    return dataclasses.replace(
        dataset, train=_shrink(dataset.train, wanted), test=_shrink(dataset.test, wanted)
    )


def _shrink(source: object, wanted: int) -> ArraySource:
    assert isinstance(source, ArraySource)
    count, height, width, channels = source.images.shape
    if height % wanted or width % wanted:
        raise InputError(f"{height} pixels do not divide into {wanted}: use a divisor")
    squares = source.images.reshape(
        count, wanted, height // wanted, wanted, width // wanted, channels
    )
    return ArraySource(np.round(squares.mean((2, 4))).astype(np.uint8), source.labels)
