"""Parquet files in the layout of Hugging Face: encoded images and their labels, read in order."""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfnets_jax.data.sources.source import Record, Source
from nfnets_jax.data.sources.tfds import imagenet_classes
from nfnets_jax.errors import InputError, nearest

_LAYOUT = "a column 'image' of structs with the field 'bytes', and a column 'label' of integers"
# The end of a file's name, after that of its split.
_NUMBER = re.compile(r"-\d+-of-\d+.*")
# Row groups in memory at a time; Hugging Face writes a hundred images in each.
_CACHED = 4
# The first and the last of the names that Hugging Face gives to ImageNet's classes.
_IMAGENET = ("tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue")


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """A split of a dataset, its images still encoded.

    Images beside one another are read together, a row group at a time. An image at random costs a
    whole row group.

    Attributes:
      name: of the split, for messages.
      groups: file and index of each row group.
      starts: ``[G + 1]``, the position of the first image of each row group, and their number.
      labels: ``[N]`` integers.
    """

    name: str
    groups: tuple[tuple[str, int], ...]
    starts: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[Record]:
        records, current = [], -1
        images: Any = None
        for index in map(int, indices):
            group = int(np.searchsorted(self.starts, index, "right")) - 1
            if group != current:  # Held here, as other threads read other row groups.
                current, images = group, _read_images(*self.groups[group])
            encoded = images[index - self.starts[group]].as_py()
            records.append(
                Record(
                    image=(encoded or {}).get("bytes") or b"",
                    label=int(self.labels[index]),
                    name=f"{self.name}, image {index}",
                )
            )
        return records


def parquet_splits(directory: str) -> dict[str, list[Path]]:
    """Returns the files of each split in a directory: ``train-00000-of-00294.parquet`` and so on.

    Raises:
      InputError: there are none, or they cannot be read in this environment.
    """
    _pyarrow()
    splits: dict[str, list[Path]] = {}
    for file in sorted(Path(directory).glob("[!.]*.parquet")):
        splits.setdefault(_NUMBER.sub("", file.stem), []).append(file)
    if not splits:
        raise InputError(f"no files *.parquet in {directory or 'the folder, which is not named'}")
    return splits


def open_parquet_split(directory: str, split: str = "") -> tuple[Source, tuple[str, ...]]:
    """Opens one split and returns it with the class names.

    Args:
      directory: the directory of the files.
      split: its name; where empty, ``validation``, ``test`` or ``train``, the first that there is.

    Raises:
      InputError: there is no such split, its files are of another layout, or it has no labels.
    """
    splits = parquet_splits(directory)
    split = split or next((s for s in ("validation", "test", "train") if s in splits), "")
    if split not in splits:
        raise InputError(f"{directory} has no split {split!r}; {nearest(split, splits)}")
    source, names = read_parquet(directory, split, splits[split])
    if min(source.labels) < 0:
        raise InputError(f"the split {split!r} in {directory} has images without a label")
    return source, names


def read_parquet(
    directory: str, split: str, files: list[Path]
) -> tuple[ParquetSource, tuple[str, ...]]:
    """Reads what the files of a split say of its images, and all labels, but no image.

    Returns:
      The split, in which a label of -1 stands for none; and the class names, numbers from 0 on
      where the files have none. ImageNet's are its WordNet ids, as everywhere here.

    Raises:
      InputError: a file is damaged or of another layout, or has a label without a class.
    """
    pyarrow = _pyarrow()
    groups: list[tuple[str, int]] = []
    lengths: list[int] = []
    labels: list[np.ndarray] = []
    names: tuple[str, ...] | None = None
    for path in files:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
                _check_layout(path, schema)
                column = file.read(columns=["label"]).column("label")
        except (OSError, pyarrow.ArrowInvalid) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} cannot be read as Parquet: {reason}") from error
        groups += ((str(path), group) for group in range(metadata.num_row_groups))
        lengths += (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        labels.append(column.fill_null(-1).to_numpy())
        names = names or _class_names(schema.metadata or {})
    every = np.concatenate(labels).astype(np.int32)
    if not every.size:
        raise InputError(f"no images in the split {split!r} of {directory}")
    names = names or tuple(str(label) for label in range(every.max() + 1))
    if every.max() >= len(names):
        raise InputError(f"{directory}, {split}: a label {every.max()} of {len(names)} classes")
    starts = np.cumsum([0, *lengths])
    return ParquetSource(f"{directory}, {split}", tuple(groups), starts, every), names


@functools.lru_cache(maxsize=_CACHED)
def _read_images(path: str, group: int) -> Any:
    with _pyarrow().parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=["image"]).column("image")


def _check_layout(path: Path, schema: Any) -> None:
    types = _pyarrow().types
    columns = dict(zip(schema.names, schema.types, strict=True))
    image, label = columns.get("image"), columns.get("label")
    fits = (
        image is not None
        and types.is_struct(image)
        and image.get_field_index("bytes") >= 0
        and label is not None
        and types.is_integer(label)
    )
    if not fits:
        found = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise InputError(f"{path} has {found}; it should have {_LAYOUT}")


def _class_names(metadata: Mapping[bytes, bytes]) -> tuple[str, ...] | None:
    """Returns the names that Hugging Face's library notes in a file, None if there are none."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if len(names) == 1000 and (names[0], names[-1]) == _IMAGENET:
        return imagenet_classes()  # In the same order.
    return tuple(map(str, names))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "Parquet files need pyarrow: pip install pyarrow, or this package with its extra train"
        ) from error
    return pyarrow
