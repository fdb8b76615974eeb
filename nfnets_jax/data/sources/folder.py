"""Folders of image files: one folder per class, or files whose classes a list names."""

import dataclasses
import os
import sys
from collections import Counter
from pathlib import Path

from nfnets_jax.data.sources.labels import Labels, read_labels
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
# How many names a line shows.
_SHOWN = 10
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


def open_folder(
    directory: str, test_directory: str = "", labels: str = "", test_labels: str = ""
) -> Splits:
    """Opens a directory of one folder per class, or one of images whose classes a file lists.

    The classes are those of ``directory``, in sorted order. Hidden files and folders, those that
    macOS adds to archives, and folders named like images are left out, which standard error is told
    once, as it is of classes without images, of images without a label and of labels without an
    image.

    Args:
      directory: images to train on.
      test_directory: images to test on, of the same classes; empty if there are none.
      labels: a file that gives each image in ``directory`` its class, as ``read_labels`` takes it;
        where empty, the class of an image is its folder.
      test_labels: the same for ``test_directory``.

    Raises:
      InputError: a directory is missing or holds no images, the labels cannot be read, or the test
        images have another class.
    """
    if not directory:
        raise InputError(f"dataset 'folder' needs a directory: {_EXPECTED}")
    if test_labels and not test_directory:
        raise InputError(f"the labels {test_labels} are of test images, and there is no folder")
    given = read_labels(labels) if labels else None
    classes = _classes(directory, given)
    train = _image_files(directory, classes, given, "images")
    if not test_directory:
        return Splits(train, None, classes)
    given = read_labels(test_labels) if test_labels else None
    if others := [name for name in _classes(test_directory, given) if name not in classes]:
        raise InputError(
            f"{test_labels or test_directory} has a class {others[0]!r} that "
            f"{labels or directory} has not{_and_more(others[1:])}"
        )
    test = _image_files(test_directory, classes, given, "evaluation images")
    return Splits(train, test, classes)


def _classes(directory: str, labels: Labels | None) -> tuple[str, ...]:
    """Returns the names of the classes, in sorted order."""
    return tuple(sorted(set(labels.classes.values()))) if labels else _subfolders(directory)


def _image_files(
    directory: str, classes: tuple[str, ...], labels: Labels | None, what: str
) -> FolderSource:
    """Lists the images of a directory; ``what`` names them in the line on classes without any."""
    files = _listed(directory, classes, labels) if labels else _in_folders(directory, classes)
    if empty := sorted(set(range(len(classes))) - {label for _, label in files}):
        names = [classes[label] for label in empty]
        _say(f"{directory}: {len(names)} classes without {what}: {_some(names)}")
    return FolderSource(tuple(files))


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


def _in_folders(directory: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Returns path and label of the images in one folder per class."""
    files: list[tuple[str, int]] = []
    hidden, folders = 0, 0
    for label, name in enumerate(classes):
        folder = os.path.join(directory, name)
        # An entry knows whether it is a folder; a path would ask the disk, once for each file.
        entries = os.scandir(folder) if os.path.isdir(folder) else ()
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not _is_named_like_image(entry.name):
                continue
            if _is_left_out(entry.name):
                hidden += 1
            elif entry.is_dir():
                folders += 1
            else:
                files.append((entry.path, label))
    if not files:
        raise InputError(
            f"no images in the {len(classes)} folders of {directory}: they should hold "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    if hidden or folders:
        _say(f"{directory}: left out: {hidden} hidden files, {folders} folders named like images")
    return files


def _listed(directory: str, classes: tuple[str, ...], labels: Labels) -> list[tuple[str, int]]:
    """Returns path and label of the images in a directory that a file gives a label.

    Raises:
      InputError: none of them has one, or a label is that of two images.
    """
    names = _names_within(directory)
    without_suffix = Counter(os.path.splitext(name)[0] for name in names)
    label_of = {name: label for label, name in enumerate(classes)}
    given = dict(labels.classes)
    files, unlabelled = [], []
    for name in names:
        stem = os.path.splitext(name)[0]
        if (key := name if name in given else stem) not in given:
            unlabelled.append(name)
            continue
        if key == stem and without_suffix[stem] > 1:
            raise InputError(f"{labels.path}: {stem!r} is the name of two images in {directory}")
        files.append((os.path.join(directory, name), label_of[given.pop(key)]))
    if not files:
        raise InputError(
            f"{labels.path} names none of the {len(names)} images in {directory}; it begins with "
            f"{next(iter(given))!r}"
        )
    if unlabelled:
        _say(f"{labels.path}: no label, left out: {len(unlabelled)} images: {_some(unlabelled)}")
    if given:
        _say(f"{directory}: not there: {len(given)} images of {labels.path}: {_some(list(given))}")
    return files


def _names_within(directory: str) -> list[str]:
    """Returns the paths of all images in a directory and its folders, relative to it, sorted."""
    if not os.path.isdir(directory):
        raise InputError(f"no folder {directory}: it should hold images")
    names: list[str] = []
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not _is_left_out(name)]
        within = os.path.relpath(folder, directory)
        names += (
            os.path.normpath(os.path.join(within, name))
            for name in files
            if _is_named_like_image(name) and not _is_left_out(name)
        )
    return sorted(names)


def _is_named_like_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _some(names: list[str]) -> str:
    """Returns the first few names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + _and_more(names[_SHOWN:])


def _and_more(names: list[str]) -> str:
    return f" and {len(names)} more" if names else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
