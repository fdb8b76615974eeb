"""Draws what runs find in test scenes of digits: above their boxes, below the classes of pixels.

python -m experiments.detection.show_predictions --detector=runs/detect_digits \
    --segmenter=runs/segment_digits --out=predictions.png
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nfnets_jax.data.decoding import Picture
from nfnets_jax.errors import InputError

from .. import commands
from . import training  # noqa: F401, it registers the tasks
from .drawing import draw_boxes, draw_classes, draw_pixels
from .prediction import FoundObjects, FoundPixels, open_predictor
from .scenes import open_scenes

_SCENES = 6


def main() -> None:
    """Draws the first test scenes with the answers of both runs."""
    from matplotlib.figure import Figure

    parser = commands.parser("detection.show_predictions", __doc__ or "")
    parser.add_argument("--detector", required=True, help="run of detect_digits")
    parser.add_argument("--segmenter", required=True, help="run of segment_digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("predictions.png"))
    arguments = parser.parse_args()
    figure = Figure(figsize=(2 * _SCENES, 4), dpi=100, layout="constrained")
    rows = figure.subplots(2, _SCENES)
    try:
        for row, run in zip(rows, (arguments.detector, arguments.segmenter), strict=True):
            draw(row, run, arguments.seed)
    except InputError as error:
        sys.exit(f"error: {error}")
    commands.save_figure(figure, arguments.out)


def draw(row: Any, run: str, seed: int) -> None:
    """Draws test scenes on a row of axes, with what a run finds in them.

    Raises:
      InputError: the run cannot be read.
    """
    reading = argparse.Namespace(weights=run, model=None, precision="float32", raw=False, size=None)
    predictor = open_predictor(reading)
    scenes: Any = open_scenes(1, predictor.size, seed).test
    records = [scenes[index] for index in range(len(row))]
    pictures = [Picture(record["image"], record["name"]) for record in records]
    images = np.stack([predictor.see(picture) for picture in pictures])
    for axes, picture, found in zip(row, pictures, predictor.answer(images, pictures), strict=True):
        draw_pixels(axes, picture.pixels())
        if isinstance(found, FoundObjects):
            names = [each.name for each in found.objects]
            draw_boxes(axes, [each.box for each in found.objects], names)
        elif isinstance(found, FoundPixels):
            draw_classes(axes, found.labels, found.names)


if __name__ == "__main__":
    main()
