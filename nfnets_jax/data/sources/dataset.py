"""Datasets by name: the sources to train and test on, and the statistics of their pixels."""

import dataclasses

import numpy as np

from nfnets_jax.data.normalization import mean_and_std
from nfnets_jax.data.sources.builtin import open_digits, open_synthetic
from nfnets_jax.data.sources.folder import open_folder
from nfnets_jax.data.sources.source import Source, Splits, select
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


def open_dataset(
    name: str, directory: str = "", test_directory: str = "", size: int = 32
) -> Dataset:
    """Opens a dataset by its name.

    Args:
      name: ``digits``, ``tfds:NAME``, ``folder`` or ``synthetic``.
      directory: for ``folder``, the directory that holds one folder per class; for ``tfds:NAME``,
        TFDS's data directory, its default where empty.
      test_directory: for ``folder``, the same for evaluation; optional.
      size: side of ``synthetic`` images, pixels.

    Raises:
      InputError: no dataset has this name, or it cannot be read from the directory.
    """
    splits = _open(name, directory, test_directory, size)
    mean, std = mean_and_std(name)
    return Dataset(*splits, len(mean), mean, std)


def open_split(
    name: str, directory: str = "", split: str = "", size: int = 32
) -> tuple[Source, tuple[str, ...]]:
    """Opens records to evaluate on and returns them with the class names.

    Args:
      name, directory, size: as ``open_dataset`` takes them; a ``folder`` is one split.
      split: such as ``train`` or ``validation``; where empty, the one that training is tested on.

    Raises:
      InputError: no dataset or split has this name, or it cannot be read from the directory.
    """
    if name.startswith(_TFDS):
        return open_tfds_split(name.removeprefix(_TFDS), directory, split)
    train, test, class_names = _open(name, directory, "", size)
    sources = {"train": train, "test": test or train}
    if (split or "test") not in sources:
        raise InputError(f"{name} has no split {split!r}; there are {', '.join(sources)}")
    return sources[split or "test"], class_names


def _open(name: str, directory: str, test_directory: str, size: int) -> Splits:
    if name == "digits":
        return open_digits()
    if name.startswith(_TFDS):
        return open_tfds(name.removeprefix(_TFDS), directory)
    if name == "folder":
        return open_folder(directory, test_directory)
    if name == "synthetic":
        return open_synthetic(size)
    raise InputError(f"no dataset {name!r}; there are digits, tfds:NAME, folder and synthetic")
