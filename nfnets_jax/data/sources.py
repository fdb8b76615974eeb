"""Where labelled images come from: the embedded digits, TFDS, image folders, synthetic ones.

A source is a random-access sequence of records ``{"image", "label", "name"}``: the image as a file,
as a file's bytes or as ``[H, W, C]`` uint8, the class as an integer, and for messages where the
image is from.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypedDict

import numpy as np
import rich.progress

from nfnets_jax.data.decoding import Picture
from nfnets_jax.errors import InputError, nearest

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Mean and standard deviation a channel, of pixels in [0, 1], where they are not ImageNet's.
_STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = MappingProxyType(
    {
        "digits": ((0.305,), (0.376,)),
        "tfds:cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
        "synthetic": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    }
)
# Splits of no more bytes than this, decoded, are held in memory.
_IN_MEMORY = 2**29
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


class Record(TypedDict):
    """One labelled image."""

    image: Path | bytes | np.ndarray
    label: int
    name: str


class Source(Protocol):
    """Records by position. Sources are pickled when worker processes read them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def fetch(source: Source, indices: Iterable[int]) -> list[Record]:
    """Records at several positions: in one go where the source has ``__getitems__``."""
    fetch_all = getattr(source, "__getitems__", None)
    return fetch_all(indices) if fetch_all else [source[index] for index in indices]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The two halves of a dataset and what the model needs to know of it.

    Attributes:
      train: records to learn from.
      test: records to evaluate on; None if there are none.
      class_names: in the order of the labels.
      channels: of the decoded images.
      mean, std: a channel, of pixels in [0, 1].
    """

    train: Source
    test: Source | None
    class_names: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def hold_out(self, count: int) -> "Dataset":
        """The same dataset, tested on so many of the records to learn from, always the same ones.

        Choices that are made by what these show leave the test records unseen.

        Raises:
          InputError: so many cannot be spared.
        """
        if not 0 < count < len(self.train):
            raise InputError(
                f"data.holdout is {count}; of {len(self.train)} training images it takes from 1 to "
                f"{len(self.train) - 1}, or 0 for the test images"
            )
        places = np.random.default_rng(0).permutation(len(self.train))
        train, test = (_part(self.train, np.sort(some)) for some in np.split(places, [-count]))
        return dataclasses.replace(self, train=train, test=test)


def open_dataset(
    name: str, directory: str = "", test_directory: str = "", size: int = 32
) -> Dataset:
    """Opens a dataset by its name.

    Args:
      name: ``digits``, ``tfds:NAME``, ``folder`` or ``synthetic``.
      directory: of a ``folder``, the one whose folders are the classes; of ``tfds:NAME`` the data
        directory, TFDS's own where empty.
      test_directory: of a ``folder``, the same for evaluation, optional.
      size: side of ``synthetic`` images, pixels.

    Raises:
      InputError: no such dataset, or nothing to read where it should be.
    """
    if name == "digits":
        train, test, classes = _digits()
    elif name.startswith("tfds:"):
        train, test, classes = _tfds(name.removeprefix("tfds:"), directory)
    elif name == "folder":
        train, test, classes = _folders(directory, test_directory)
    elif name == "synthetic":
        train, test = SyntheticSource(2048, size, seed=0), SyntheticSource(512, size, seed=1)
        classes = tuple(f"pattern {label}" for label in range(SyntheticSource.CLASSES))
    else:
        raise InputError(
            f"no dataset {name!r}; data.name is digits, tfds:NAME, folder or synthetic"
        )
    mean, std = normalization(name)
    return Dataset(train, test, classes, len(mean), mean, std)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, of pixels in [0, 1], by a dataset's name."""
    return _STATISTICS.get(name, (_IMAGENET_MEAN, _IMAGENET_STD))


def open_split(
    name: str, directory: str = "", split: str = "", size: int = 32
) -> tuple[Source, tuple[str, ...]]:
    """Opens what is to be evaluated on: records, and the class names in the order of the labels.

    Args:
      name, directory, size: as ``open_dataset`` has them; of a ``folder``, all of it is taken.
      split: such as ``train`` or ``validation``; without it, what training is tested on.

    Raises:
      InputError: no such dataset or split, or nothing to read where it should be.
    """
    if name.startswith("tfds:"):
        builder = _tfds_builder(name.removeprefix("tfds:"), directory)
        split = split or _test_split(builder) or "train"
        if split not in builder.info.splits:
            raise InputError(
                f"{name} has no split {split!r}; {nearest(split, builder.info.splits)}"
            )
        source = _tfds_split(builder, split, directory)
        return source, tuple(builder.info.features["label"].names)
    dataset = open_dataset(name, directory, size=size)
    sources = {"train": dataset.train, "test": dataset.test or dataset.train}
    if (split or "test") not in sources:
        raise InputError(f"{name} has no split {split!r}; there are {', '.join(sources)}")
    return sources[split or "test"], dataset.class_names


Parts = tuple[Source, Source | None, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory: ``images`` ``[N, H, W, C]`` uint8 and ``labels`` ``[N]``."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(
            image=self.images[index], label=int(self.labels[index]), name=f"image {index}"
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """The records of ``source`` at ``places``, ``[N]``."""

    source: Source
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        return self.source[self.places[index]]

    def __getitems__(self, indices: Iterable[int]) -> list[Record]:
        return fetch(self.source, self.places[list(indices)].tolist())


def _part(source: Source, places: np.ndarray) -> Source:
    # What is in memory is taken from there in one go.
    if isinstance(source, ArraySource):
        return ArraySource(source.images[places], source.labels[places])
    return Part(source, places)


def _digits() -> Parts:
    """Scikit-learn's 1,797 handwritten digits, 8x8 pixels, always the same 360 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    names = tuple(str(name) for name in digits.target_names)
    return (
        ArraySource(images[train], digits.target[train]),
        ArraySource(images[test], digits.target[test]),
        names,
    )


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Noise over one of ten fixed patterns: something to learn that needs no files.

    Each image is a function of the seed and its position alone.
    """

    CLASSES = 10
    length: int
    size: int
    seed: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        label = index % self.CLASSES
        waves = np.random.default_rng(label).uniform(-2, 2, (3, 2))
        grid = np.linspace(0, np.pi, self.size, dtype=np.float32)
        phase = grid[:, None, None] * waves[:, 0] + grid[None, :, None] * waves[:, 1]
        noise = np.random.default_rng((self.seed, index)).standard_normal(phase.shape, np.float32)
        image = 127.5 + 45 * np.sin(phase) + 45 * noise
        return Record(
            image=np.clip(image, 0, 255).astype(np.uint8), label=label, name=f"synthetic {index}"
        )


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files with their classes."""

    files: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        path, label = self.files[index]
        return Record(image=Path(path), label=label, name=path)


def _folders(directory: str, test_directory: str) -> Parts:
    names = _subfolders(directory, "data.dir")
    train = _image_files(directory, names, "data.dir")
    if not test_directory:
        return train, None, names
    for name in _subfolders(test_directory, "data.test_dir"):
        if name not in names:
            raise InputError(f"{test_directory} has a class {name!r} that {directory} has not")
    return train, _image_files(test_directory, names, "data.test_dir"), names


def _subfolders(directory: str, field: str) -> tuple[str, ...]:
    wanted = f"{field} takes a folder that holds one folder of images a class"
    if not directory:
        raise InputError(f"no {field}: {wanted}")
    if not os.path.isdir(directory):
        raise InputError(f"no folder {directory}: {wanted}")
    names = tuple(sorted(entry.name for entry in os.scandir(directory) if entry.is_dir()))
    if not names:
        raise InputError(f"no folders in {directory}: {wanted}")
    return names


def _image_files(directory: str, names: tuple[str, ...], field: str) -> FolderSource:
    files = []
    for label, name in enumerate(names):
        folder = Path(directory, name)
        if folder.is_dir():
            files += [
                (str(path), label)
                for path in sorted(folder.iterdir())
                if path.suffix.lower() in IMAGE_SUFFIXES
            ]
    if not files:
        raise InputError(
            f"no images in the {len(names)} folders of {directory}: {field} takes a folder that "
            f"holds one folder a class of {', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    return FolderSource(tuple(files))


@dataclasses.dataclass(frozen=True)
class TFDSSource:
    """A split of a dataset that TFDS prepared as ArrayRecord, images still encoded."""

    name: str
    split: str
    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[Record]:
        # By itself each record takes a third of a millisecond to read, among others a fifth of it.
        indices = [int(index) for index in indices]
        return [
            Record(
                image=record["image"],
                label=int(record["label"]),
                name=f"{self.name}, {self.split}, record {index}",
            )
            for index, record in zip(indices, self.records.__getitems__(indices), strict=True)
        ]


def _in_memory(source: TFDSSource, shape: tuple[int, int, int]) -> ArraySource:
    """All images of a source, decoded; ``shape`` is that of each."""
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32)
    chunks = range(0, len(source), 256)
    title = f"reading {source.name}, {source.split}"
    for start in rich.progress.track(chunks, title, transient=True):
        stop = min(start + 256, len(source))
        for index, record in enumerate(fetch(source, range(start, stop)), start):
            images[index], labels[index] = (
                Picture(record["image"], record["name"]).pixels(),
                record["label"],
            )
    return ArraySource(images, labels)


def _tfds(name: str, directory: str) -> Parts:
    builder = _tfds_builder(name, directory)
    test = _test_split(builder)
    return (
        _tfds_split(builder, "train", directory),
        _tfds_split(builder, test, directory) if test else None,
        tuple(builder.info.features["label"].names),
    )


def _tfds_builder(name: str, directory: str) -> Any:
    """What TFDS knows of a dataset that is prepared and has images and labels."""
    import tensorflow_datasets as tfds

    if directory and not os.path.isdir(directory):
        raise InputError(f"no folder {directory}: data.dir takes the data directory of TFDS")
    where = _tfds_directory(directory)
    try:
        builder = tfds.builder(name, data_dir=directory or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise InputError(f"TFDS knows no dataset {name!r}, and there is none in {where}") from error
    if not builder.info.splits:
        raise InputError(
            f"dataset {name!r} is not prepared in {where}: data.dir takes the folder that holds "
            f"{name}/"
        )
    features = builder.info.features
    if "image" not in features or "label" not in features:
        raise InputError(
            f"dataset {name!r} has {', '.join(features)}; training needs an image and a label"
        )
    return builder


def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1000 classes in the order of the labels, as TFDS has them."""
    import tensorflow_datasets as tfds

    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())


def _tfds_directory(directory: str) -> str:
    return directory or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def _test_split(builder: Any) -> str | None:
    return next((split for split in ("test", "validation") if split in builder.info.splits), None)


def _tfds_split(builder: Any, split: str, directory: str) -> Source:
    """Held in memory, decoded, if it is small."""
    import tensorflow_datasets as tfds

    name, shape = builder.name, builder.info.features["image"].shape
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        where = _tfds_directory(directory)
        raise InputError(
            f"dataset {name!r} in {where} is TFRecord, which cannot be read at any position; "
            f"this makes ArrayRecord of it: python -m experiments.prepare {name} "
            f"--tfrecords={where} --data_dir=ANOTHER_FOLDER"
        ) from error
    source = TFDSSource(name, split, records)
    small = None not in shape and len(source) * math.prod(shape) <= _IN_MEMORY
    return _in_memory(source, shape) if small else source
