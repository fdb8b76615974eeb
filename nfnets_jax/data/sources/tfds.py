"""Datasets that TensorFlow Datasets (TFDS) prepared as ArrayRecord, read without TensorFlow."""

import dataclasses
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import rich.progress

from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.sources.source import ArraySource, Record, Source, Splits, fetch
from nfnets_jax.errors import InputError, nearest

# Splits of at most this many bytes of pixels are decoded once and held in memory.
_IN_MEMORY_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class TFDSSource:
    """A split of a dataset, its images still encoded.

    Attributes:
      name: the dataset.
      split: the split.
      records: what TFDS reads the split with.
    """

    name: str
    split: str
    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[Record]:
        # A record takes a third of a millisecond to read alone, a fifth of that with others.
        indices = [int(index) for index in indices]
        return [
            Record(
                image=record["image"],
                label=int(record["label"]),
                name=f"{self.name}, {self.split}, record {index}",
            )
            for index, record in zip(indices, self.records.__getitems__(indices), strict=True)
        ]


def open_tfds(name: str, directory: str = "") -> Splits:
    """Opens the splits that a dataset is trained and tested on.

    Args:
      name: of the dataset, as TFDS knows it.
      directory: TFDS's data directory; its default where empty.

    Raises:
      InputError: the dataset is unknown, not prepared, not ArrayRecord, or not of labelled images.
    """
    builder = _builder(name, directory)
    test = _test_split(builder)
    return Splits(
        _open(builder, "train", directory),
        _open(builder, test, directory) if test else None,
        tuple(builder.info.features["label"].names),
    )


def open_tfds_split(name: str, directory: str, split: str) -> tuple[Source, tuple[str, ...]]:
    """Opens one split and returns it with the class names.

    Args:
      name, directory: as ``open_tfds`` takes them.
      split: its name; where empty, the one that the dataset is tested on.

    Raises:
      InputError: as ``open_tfds``, or there is no such split.
    """
    builder = _builder(name, directory)
    split = split or _test_split(builder) or "train"
    if split not in builder.info.splits:
        raise InputError(
            f"tfds:{name} has no split {split!r}; {nearest(split, builder.info.splits)}"
        )
    return _open(builder, split, directory), tuple(builder.info.features["label"].names)


def imagenet_classes() -> tuple[str, ...]:
    """Returns the WordNet ids of ImageNet's 1000 classes, in TFDS's order of the labels."""
    import tensorflow_datasets as tfds

    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())


def _builder(name: str, directory: str) -> Any:
    """Returns TFDS's builder of a dataset that is prepared and has images and labels."""
    import tensorflow_datasets as tfds

    if directory and not os.path.isdir(directory):
        raise InputError(f"no folder {directory}: it should be the data directory of TFDS")
    where = _data_directory(directory)
    try:
        builder = tfds.builder(name, data_dir=directory or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise InputError(f"TFDS knows no dataset {name!r}, and there is none in {where}") from error
    if not builder.info.splits:
        raise InputError(f"dataset {name!r} is not prepared in {where}, which should hold {name}/")
    features = builder.info.features
    if "image" not in features or "label" not in features:
        raise InputError(
            f"dataset {name!r} has {', '.join(features)}; an image and a label are needed"
        )
    return builder


def _data_directory(directory: str) -> str:
    return directory or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def _test_split(builder: Any) -> str | None:
    return next((split for split in ("test", "validation") if split in builder.info.splits), None)


def _open(builder: Any, split: str, directory: str) -> Source:
    import tensorflow_datasets as tfds

    name, shape = builder.name, builder.info.features["image"].shape
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise InputError(
            f"dataset {name!r} in {_data_directory(directory)} is TFRecord, which has no random "
            "access; `nfnets prepare` converts it to ArrayRecord"
        ) from error
    source = TFDSSource(name, split, records)
    small = None not in shape and len(source) * math.prod(shape) <= _IN_MEMORY_BYTES
    return _decode(source, shape) if small else source


def _decode(source: TFDSSource, shape: tuple[int, int, int]) -> ArraySource:
    """Reads all images, each of the given shape, into memory."""
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32)
    chunks = range(0, len(source), 256)
    title = f"reading {source.name}, {source.split}"
    for start in rich.progress.track(chunks, title, transient=True):
        stop = min(start + 256, len(source))
        for index, record in enumerate(fetch(source, range(start, stop)), start):
            images[index] = Picture(record["image"], record["name"]).pixels()
            labels[index] = record["label"]
    return ArraySource(images, labels)
