"""Draws boxes and classes of pixels on images; as a program, on augmented scenes of digits.

python -m experiments.detection.drawing --out=scenes.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import commands
from .objects import BACKGROUND
from .placement import Jitter
from .scenes import open_scenes

_SCENES, _SIZE = 6, 96
_SCALES = (0.8, 1.25)


def draw_pixels(axes: Any, pixels: np.ndarray) -> None:
    """Draws an image ``[H, W, C]`` uint8 on axes of matplotlib."""
    axes.imshow(pixels, cmap="gray" if pixels.shape[2] == 1 else None)
    axes.set_axis_off()


def draw_boxes(axes: Any, boxes: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """Draws boxes, each its left, upper, right and lower edge in pixels, and their names."""
    for number, ((left, top, right, bottom), name) in enumerate(zip(boxes, names, strict=True)):
        color = f"C{number % 10}"
        # Pixels are drawn around whole numbers, and edges count from the edge of the image.
        x, y = np.array([left, right]) - 0.5, np.array([top, bottom]) - 0.5
        axes.plot(x[[0, 1, 1, 0, 0]], y[[0, 0, 1, 1, 0]], color=color)
        label = {"backgroundcolor": color, "color": "white", "fontsize": 8, "parse_math": False}
        axes.text(x[0], y[0], name, **label)


def draw_classes(axes: Any, labels: np.ndarray, names: Sequence[str]) -> None:
    """Draws the classes of pixels ``[H, W]``, ``k + 1`` for class ``k``, and a legend."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    overlay, patches = np.zeros((*labels.shape, 4)), []
    for label in np.unique(labels).tolist():
        if label != BACKGROUND:
            color = colormaps["tab10"]((label - 1) % 10)[:3]
            overlay[labels == label] = (*color, 0.7)
            patches.append(Patch(color=color, label=names[label - 1]))
    axes.imshow(overlay)
    if patches:
        axes.legend(handles=patches, loc="upper right", fontsize=8)


def main() -> None:
    """Draws augmented training scenes: above with their boxes, below with their masks."""
    from matplotlib.figure import Figure

    parser = commands.parser("detection.drawing", __doc__ or "")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("scenes.png"))
    arguments = parser.parse_args()
    scenes = open_scenes(_SCENES, _SIZE, arguments.seed)
    jitter = Jitter(_SIZE, _SCALES, flip=False)
    figure = Figure(figsize=(2 * _SCENES, 4), dpi=100, layout="constrained")
    for index, (above, below) in enumerate(figure.subplots(2, _SCENES).T):
        record: Any = scenes.train[index]
        placement = jitter.draw(_SIZE, _SIZE, np.random.default_rng((arguments.seed, index)))
        pixels, objects = placement.image(record["image"]), placement.objects(record["label"])
        for axes in (above, below):
            draw_pixels(axes, pixels)
        names = [scenes.class_names[label] for label in objects.classes]
        draw_boxes(above, objects.boxes.tolist(), names)
        draw_classes(below, placement.labels(record["label"].class_map()), scenes.class_names)
    commands.save_figure(figure, arguments.out)


if __name__ == "__main__":
    main()
