"""Writes the confusion matrix of a classifier as a table and as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nfnets_jax.atomic import atomic_write_for_user

# With more classes, names on the axes could not be read.
_MOST_NAMED = 50
_LONGEST_NAME = 24
# Smaller shares of a class have the colour of this one.
_LEAST_SHARE = 1e-3


def write_confusion_table(path: Path, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes a confusion matrix as CSV: a row for each true class, a column for each predicted one.

    The first row and the first column hold the names of all classes, in the order of the labels.

    Args:
      path: of the file.
      confusion: ``[C, C]`` integers, as ``metrics.Accuracy`` has them.
      class_names: C names.

    Raises:
      InputError: the file cannot be written.
    """
    with (
        atomic_write_for_user(path) as partial,
        partial.open("w", newline="", encoding="utf-8") as f,
    ):
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["true \\ predicted", *class_names])
        for name, counts in zip(class_names, confusion.tolist(), strict=True):
            writer.writerow([name, *counts])


def draw_confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws a confusion matrix as PNG: the share of each true class that is predicted as another.

    Rows are true classes and columns predicted ones, without the classes that are neither. Rows are
    normalized, colours are logarithmic from 0.1% on, and cells without examples stay white. Up to
    50 classes have their names beside them.

    Args:
      path: of the file.
      confusion: ``[C, C]`` integers, as ``metrics.Accuracy`` has them.
      class_names: C names.

    Raises:
      InputError: the file cannot be written.
    """
    from matplotlib.colors import LogNorm  # It takes a second to import.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    seen = np.flatnonzero(confusion.any(axis=0) | confusion.any(axis=1)).tolist()
    counts = confusion[np.ix_(seen, seen)]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = float(np.clip(2.5 + 0.22 * len(seen), 4.5, 12))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        np.ma.masked_equal(shares, 0), cmap="viridis_r", norm=LogNorm(_LEAST_SHARE, 1)
    )
    percent = FuncFormatter(lambda share, _: f"{100 * share:g}%")
    figure.colorbar(image, label="share of the true class", format=percent)
    named, places = len(seen) <= _MOST_NAMED, range(len(seen))
    names = [class_names[label] for label in seen] if named else []
    names = [n if len(n) <= _LONGEST_NAME else f"{n[: _LONGEST_NAME - 1]}…" for n in names]
    axis.set_xticks(places if named else [], names, rotation=90, parse_math=False)
    axis.set_yticks(places if named else [], names, parse_math=False)
    shown = "" if len(seen) == len(confusion) else f"{len(seen)} of "
    axis.set(
        xlabel="predicted class",
        ylabel="true class",
        title=f"{counts.sum()} images of {shown}{len(confusion)} classes",
    )
    with atomic_write_for_user(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
