import csv
from pathlib import Path
from typing import Any

import cv2
import matplotlib.figure
import numpy as np
import pytest

from nfnets_jax.errors import InputError
from nfnets_jax.serving.confusion import draw_confusion, write_confusion_table


def counts(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts one example after the other."""
    confusion = np.zeros((classes, classes), np.int64)
    for row, column in zip(true, predicted, strict=True):
        confusion[row, column] += 1
    return confusion


def test_rows_are_true_classes_and_columns_predicted_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, 300), rng.integers(1, 4, 300)
    names = ("cat", 'a "dog", big', "größe", "=1+1")
    path = tmp_path / "new" / "table.csv"
    write_confusion_table(path, counts(true, predicted, 4), names)
    with path.open(newline="", encoding="utf-8") as file:
        (corner, *columns), *rows = csv.reader(file)
    assert corner == "true \\ predicted"
    assert tuple(columns) == names == tuple(row[0] for row in rows)
    for place, row in enumerate(rows):
        assert list(map(int, row[1:])) == [
            int(np.sum((true == place) & (predicted == column))) for column in range(4)
        ]
    with pytest.raises(InputError, match="table.csv/table.csv cannot be written"):
        write_confusion_table(path / "table.csv", counts(true, predicted, 4), names)


@pytest.mark.parametrize("classes", [3, 50, 51, 400])
def test_the_picture_shows_shares_of_the_true_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    drawn: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def savefig(figure: matplotlib.figure.Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(classes), 5)
    predicted = np.where(rng.random(len(true)) < 0.7, true, (true + 1) % classes)
    # One class more, which is neither in the data nor ever predicted.
    names = [f"$name_{{{place}$ of a class that has a long one" for place in range(classes + 1)]
    confusion = counts(true, predicted, classes + 1)
    draw_confusion(tmp_path / "picture.png", confusion, names)
    (figure,) = drawn
    axis = figure.axes[0]
    shares = axis.images[0].get_array()
    assert shares is not None
    np.testing.assert_allclose(np.ma.filled(shares, 0), confusion[:classes, :classes] / 5)
    assert axis.get_title() == f"{5 * classes} images of {classes} of {classes + 1} classes"
    shown = [label.get_text() for label in axis.get_yticklabels()]
    assert shown == ([f"{n[:23]}…" for n in names[:classes]] if classes <= 50 else [])
    ticks = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert ticks[1:-1] == ["0.1%", "1%", "10%", "100%"]  # Those outside are not shown.
    pixels = cv2.imread(str(tmp_path / "picture.png"))
    assert pixels is not None
    # Each class has at least one pixel.
    assert axis.get_window_extent().height > classes
    assert pixels.shape[0] > 600
