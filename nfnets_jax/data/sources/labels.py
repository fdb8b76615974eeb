"""Files that list images and their classes."""

import csv
import os
import re
import sys
from typing import NamedTuple

from nfnets_jax.errors import InputError

_EXPECTED = "a line is FILE,CLASS, with a comma, a tab or a blank between them"
# A class and boxes of four numbers each, as Kaggle's lists for ImageNet have them.
_WITH_BOXES = re.compile(r"(\S+)(?:\s+-?\d+){4}(?:\s.*)?")


class Labels(NamedTuple):
    """The classes of images.

    Attributes:
      path: of the file that lists them.
      classes: the class of each image by its file, in the order of the lines; a file may lack its
        suffix.
    """

    path: str
    classes: dict[str, str]


def read_labels(path: str) -> Labels:
    """Reads a file of one image and its class a line.

    A comma, a tab or a blank separates them, the same on all lines; what follows a second comma or
    tab is left out. The first line is taken for a header, and standard error told so, if its file
    has no digit and no suffix, such as ``ImageId``, and no other line has its class. In Kaggle's
    lists for ImageNet, the first word of the second column is the class, and boxes follow.

    Args:
      path: of the file, UTF-8.

    Raises:
      InputError: the file cannot be read, is empty, has a line without a class, or gives an image
        two classes.
    """
    rows = _read_rows(path)
    if _begins_with_header(rows):
        print(f"{path}: the first line is taken for a header: {rows[0][1][0]!r}", file=sys.stderr)
        del rows[0]
    classes: dict[str, str] = {}
    repeated = []
    for number, row in rows:
        file, name = os.path.normpath(row[0]), row[1] if len(row) > 1 else ""
        if boxes := _WITH_BOXES.fullmatch(name):
            name = boxes[1]
        if not row[0] or not name:
            raise InputError(f"{path}, line {number}: no class; {_EXPECTED}")
        if file in classes:
            repeated.append(file)
        if classes.setdefault(file, name) != name:
            raise InputError(
                f"{path}, line {number}: {file} is {name!r} here and {classes[file]!r} before"
            )
    if not classes:
        raise InputError(f"{path} lists no images: {_EXPECTED}")
    if repeated:
        print(
            f"{path}: {len(repeated)} lines repeat others, the first that of {repeated[0]}",
            file=sys.stderr,
        )
    return Labels(path, classes)


def _begins_with_header(rows: list[tuple[int, list[str]]]) -> bool:
    if not rows:
        return False
    file, *name = rows[0][1][:2]
    return not re.search(r"[\d.]", file) and all(row[1:2] != name for _, row in rows[1:])


def _read_rows(path: str) -> list[tuple[int, list[str]]]:
    """Returns the words of each line that is not empty, with its number from 1 on."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"labels in {path} cannot be read: {reason}") from error
    begin = next(filter(str.strip, lines), "")
    separator = next((mark for mark in "\t," if mark in begin), None)
    rows = []
    for number, line in enumerate(lines, 1):
        if separator:
            words = next(csv.reader([line], delimiter=separator), [])
        else:
            words = line.split(maxsplit=1)
        if any(words := [word.strip() for word in words]):
            rows.append((number, words))
    return rows
