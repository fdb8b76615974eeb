"""The protocol of a source, labelled images by position, and sources that hold or select them."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from nfnets_jax.data.stages import timed_reading


class Record(TypedDict):
    """A labelled image.

    Attributes:
      image: a file, the content of one, or pixels ``[H, W, C]`` uint8.
      label: index of the class, or what else a task learns of the image.
      name: identifies the image in messages.
    """

    image: Path | bytes | np.ndarray
    label: Any
    name: str


class Source(Protocol):
    """Records by position, in a fixed order.

    A source is pickled when worker processes read it. It may also have ``__getitems__``, which
    takes several positions and returns their records, where that is faster.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Splits(NamedTuple):
    """A dataset's sources.

    Attributes:
      train: records to train on.
      test: records to evaluate on; None if there are none.
      class_names: in the order of the labels.
    """

    train: Source
    test: Source | None
    class_names: tuple[str, ...]


def fetch(source: Source, indices: Iterable[int]) -> list[Record]:
    """Returns the records at several positions, read together where the source can do so."""
    fetch_all = getattr(source, "__getitems__", None)
    if isinstance(source, Subset):  # Which fetches from its own source.
        return source.__getitems__(indices)
    with timed_reading():
        return fetch_all(indices) if fetch_all else [source[index] for index in indices]


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory.

    Attributes:
      images: ``[N, H, W, C]`` uint8.
      labels: ``[N]`` integers.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(
            image=self.images[index], label=int(self.labels[index]), name=f"image {index}"
        )


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some records of another source.

    Attributes:
      source: the other source.
      indices: ``[N]``, positions in it.
    """

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[self.indices[index]]

    def __getitems__(self, indices: Iterable[int]) -> list[Record]:
        return fetch(self.source, self.indices[list(indices)].tolist())


def select(source: Source, indices: np.ndarray) -> Source:
    """Returns the records at some positions, ``[N]``, as a source."""
    if isinstance(source, ArraySource):  # Stays one, as batches are read from it in one go.
        return ArraySource(source.images[indices], source.labels[indices])
    return Subset(source, indices)
