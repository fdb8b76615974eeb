"""Folders of image files, one folder per class."""

import dataclasses
import os
import sys
from pathlib import Path

from nfnets_jax.data.sources.source import Record, Splits
from nfnets_jax.errors import InputError

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".jp2", ".png", ".bmp", ".webp", ".tif", ".tiff"),
        *(".gif", ".avif"),
    }
)
# What archives of macOS have beside the files themselves; hidden names start with a dot.
_LEFT_OUT = frozenset({"__MACOSX"})
_EXPECTED = "it should hold one folder of images per class"


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files and their labels.

    Attributes:
      files: path and label of each image.
    """

    files: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        path, label = self.files[index]
        return Record(image=Path(path), label=label, name=path)


def open_folder(directory: str, test_directory: str = "") -> Splits:
    """Opens a directory of one folder per class; the classes are the folders in sorted order.

    Hidden files and folders, those that macOS adds to archives, and folders named like images are
    left out, which standard error is told once, as it is of classes without images.

    Args:
      directory: images to train on.
      test_directory: images to test on, in folders of the same names; empty if there are none.

    Raises:
      InputError: a directory is missing or holds no images, or the test images have another class.
    """
    if not directory:
        raise InputError(f"dataset 'folder' needs a directory: {_EXPECTED}")
    names = _subfolders(directory)
    train = _image_files(directory, names)
    if not test_directory:
        return Splits(train, None, names)
    for name in _subfolders(test_directory):
        if name not in names:
            raise InputError(f"{test_directory} has a class {name!r} that {directory} has not")
    return Splits(train, _image_files(test_directory, names), names)


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_OUT


def _subfolders(directory: str) -> tuple[str, ...]:
    if not os.path.isdir(directory):
        raise InputError(f"no folder {directory}: {_EXPECTED}")
    found = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    names = tuple(name for name in found if not _is_left_out(name))
    if not names:
        raise InputError(f"no folders in {directory}: {_EXPECTED}")
    if others := [name for name in found if _is_left_out(name)]:
        _say(f"{directory}: no classes, left out: {', '.join(others)}")
    return names


def _image_files(directory: str, class_names: tuple[str, ...]) -> FolderSource:
    files: list[tuple[str, int]] = []
    hidden, folders, empty = 0, 0, []
    for label, name in enumerate(class_names):
        before = len(files)
        folder = os.path.join(directory, name)
        # An entry knows whether it is a folder; a path would ask the disk, once for each file.
        entries = os.scandir(folder) if os.path.isdir(folder) else ()
        for entry in sorted(entries, key=lambda entry: entry.name):
            if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
                continue
            if _is_left_out(entry.name):
                hidden += 1
            elif entry.is_dir():
                folders += 1
            else:
                files.append((entry.path, label))
        if len(files) == before:
            empty.append(name)
    if not files:
        raise InputError(
            f"no images in the {len(class_names)} folders of {directory}: they should hold "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    if hidden or folders:
        _say(f"{directory}: left out: {hidden} hidden files, {folders} folders named like images")
    if empty:
        _say(f"{directory}: {len(empty)} classes without images: {', '.join(empty)}")
    return FolderSource(tuple(files))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
