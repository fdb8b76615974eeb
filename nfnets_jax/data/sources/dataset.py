"""Datasets by name: the sources to train and test on, and the statistics of their pixels."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nfnets_jax.data.normalization import IMAGENET_MEAN, IMAGENET_STD, mean_and_std
from nfnets_jax.data.sources.builtin import open_digits, open_synthetic
from nfnets_jax.data.sources.folder import open_folder
from nfnets_jax.data.sources.parquet import open_parquet_split
from nfnets_jax.data.sources.source import Record, Source, Splits, select
from nfnets_jax.data.sources.tfds import open_tfds, open_tfds_split
from nfnets_jax.errors import InputError

_TFDS = "tfds:"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Sources to train and test on, and what a model needs to know of their images.

    Attributes:
      train: records to train on.
      test: records to evaluate on; None if there are none.
      class_names: in the order of the labels.
      channels: of the decoded images.
      mean, std: per channel, of pixels in [0, 1].
    """

    train: Source
    test: Source | None
    class_names: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def hold_out(self, count: int) -> "Dataset":
        """Returns the dataset with ``count`` training records, always the same, as test records.

        Choices made on these leave the real test records unseen.

        Raises:
          InputError: ``count`` is not positive, or leaves nothing to train on.
        """
        if not 0 < count < len(self.train):
            raise InputError(
                f"cannot hold out {count} of {len(self.train)} training images; from 1 to "
                f"{len(self.train) - 1} can be"
            )
        order = np.random.default_rng(0).permutation(len(self.train))
        train, test = (
            select(self.train, np.sort(indices)) for indices in np.split(order, [-count])
        )
        return dataclasses.replace(self, train=train, test=test)


class LabelledImages(Protocol):
    """Pairs ``(image, label)`` by position: a list, a Grain source, any sequence.

    An image is pixels ``[H, W, C]`` uint8, a file's path or its content.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class PairSource:
    """Records of pairs of an image and a label.

    Attributes:
      pairs: the pairs.
      name: of the dataset, for messages.
    """

    pairs: LabelledImages
    name: str

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Record:
        image, label = self.pairs[int(index)]
        image = Path(image) if isinstance(image, str) else image
        return Record(image=image, label=int(label), name=f"{self.name} {index}")


_REGISTERED: dict[str, Dataset] = {}


def register_dataset(
    name: str,
    train: LabelledImages,
    test: LabelledImages | None = None,
    *,
    class_names: Sequence[str],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Makes images from Python a value of ``data.name``, for training and evaluation.

    Args:
      name: replaces a dataset of that name.
      train: pairs to train on.
      test: pairs to evaluate on; None if there are none.
      class_names: in the order of the labels, which count from 0.
      mean, std: per channel, of pixels in [0, 1]; ImageNet's by default. Their number is that of
        the images' channels.

    Raises:
      InputError: there are no pairs or classes, or the first pair is none.

    Example:
      >>> images = np.zeros((4, 8, 8, 3), np.uint8)
      >>> register_dataset("black", list(zip(images, [0, 1, 0, 1])), class_names=("a", "b"))
      >>> len(open_dataset("black").train)
      4
    """
    if not class_names or not len(train):
        raise InputError(f"dataset {name!r} takes pairs of an image and a label, and class names")
    try:
        _, label = train[0]
        known = 0 <= int(label) < len(class_names)
    except (TypeError, ValueError) as error:
        raise InputError(f"dataset {name!r}: its first entry is no image with a label") from error
    if not known:
        raise InputError(
            f"dataset {name!r}: the first label is {label}, of {len(class_names)} classes from 0 on"
        )
    _REGISTERED[name] = Dataset(
        PairSource(train, name),
        None if test is None else PairSource(test, name),
        tuple(class_names),
        len(mean),
        tuple(mean),
        tuple(std),
    )


def open_dataset(
    name: str,
    directory: str = "",
    test_directory: str = "",
    size: int = 32,
    *,
    labels: str = "",
    test_labels: str = "",
) -> Dataset:
    """Opens a dataset by its name.

    Args:
      name: ``digits``, ``tfds:NAME``, ``folder``, ``synthetic``, or one that is registered.
      directory: for ``folder``, the directory that holds one folder per class, or images that
        ``labels`` lists; for ``tfds:NAME``, TFDS's data directory, its default where empty.
      test_directory: for ``folder``, the same for evaluation; optional.
      size: side of ``synthetic`` images, pixels.
      labels, test_labels: for ``folder``, files that list the images in ``directory`` and
        ``test_directory`` with their classes, as ``read_labels`` takes them; optional.

    Raises:
      InputError: no dataset has this name, or it cannot be read from the directory.
    """
    _check_labels(name, labels, test_labels)
    if name in _REGISTERED:
        return _REGISTERED[name]
    splits = _open(name, directory, test_directory, size, labels, test_labels)
    mean, std = mean_and_std(name)
    return Dataset(*splits, len(mean), mean, std)


def open_split(
    name: str, directory: str = "", split: str = "", size: int = 32, *, labels: str = ""
) -> tuple[Source, tuple[str, ...]]:
    """Opens records to evaluate on and returns them with the class names.

    It opens ``parquet``, too: the directory holds files in the layout of Hugging Face.

    Args:
      name, directory, size, labels: as ``open_dataset`` takes them; a ``folder`` is one split.
      split: such as ``train`` or ``validation``; where empty, the one that training is tested on.

    Raises:
      InputError: no dataset or split has this name, or it cannot be read from the directory.
    """
    _check_labels(name, labels)
    if name.startswith(_TFDS):
        return open_tfds_split(name.removeprefix(_TFDS), directory, split)
    if name == "parquet":
        return open_parquet_split(directory, split)
    dataset = open_dataset(name, directory, size=size, labels=labels)
    sources = {"train": dataset.train, "test": dataset.test or dataset.train}
    if (split or "test") not in sources:
        raise InputError(f"{name} has no split {split!r}; there are {', '.join(sources)}")
    return sources[split or "test"], dataset.class_names


def _check_labels(name: str, *labels: str) -> None:
    """Checks that no file of labels is given for a dataset that has its own."""
    if name != "folder" and any(labels):
        raise InputError(
            f"dataset {name!r} has its own labels: those in {max(labels)} are for 'folder'"
        )


def _open(
    name: str, directory: str, test_directory: str, size: int, labels: str, test_labels: str
) -> Splits:
    if name == "digits":
        return open_digits()
    if name.startswith(_TFDS):
        return open_tfds(name.removeprefix(_TFDS), directory)
    if name == "folder":
        return open_folder(directory, test_directory, labels, test_labels)
    if name == "synthetic":
        return open_synthetic(size)
    if name == "parquet":
        raise InputError(
            "training reads images in random order, for which Parquet has to read a hundred others "
            "each: `nfnets prepare NAME --parquet=DIR` converts it to ArrayRecord"
        )
    others = "".join(f", {registered}" for registered in _REGISTERED)
    raise InputError(
        f"no dataset {name!r}; there are digits, tfds:NAME, folder and synthetic{others}"
    )
