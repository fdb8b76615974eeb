"""Folders of image files, one folder per class."""

import dataclasses
import os
from pathlib import Path

from nfnets_jax.data.sources.source import Record, Splits
from nfnets_jax.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
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


def _subfolders(directory: str) -> tuple[str, ...]:
    if not os.path.isdir(directory):
        raise InputError(f"no folder {directory}: {_EXPECTED}")
    names = tuple(sorted(entry.name for entry in os.scandir(directory) if entry.is_dir()))
    if not names:
        raise InputError(f"no folders in {directory}: {_EXPECTED}")
    return names


def _image_files(directory: str, class_names: tuple[str, ...]) -> FolderSource:
    files = []
    for label, name in enumerate(class_names):
        folder = Path(directory, name)
        if folder.is_dir():
            files += [
                (str(path), label)
                for path in sorted(folder.iterdir())
                if path.suffix.lower() in IMAGE_SUFFIXES
            ]
    if not files:
        raise InputError(
            f"no images in the {len(class_names)} folders of {directory}: they should hold "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    return FolderSource(tuple(files))
