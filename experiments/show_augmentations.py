"""Draws what RandAugment, MixUp and CutMix do to a photograph.

    python -m experiments.show_augmentations --image=PHOTO --out=augmentations.png

Operations are drawn at the magnitudes of the NFNet recipes. Without ``--image``, a photograph that
comes with scikit-learn is used.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nfnets_jax.data import randaugment
from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.transforms import center_crop, distorted_crop
from nfnets_jax.errors import UnreadableImageError

from . import commands

_MAGNITUDES = 5, 10, 15
_AT = f"magnitude {', '.join(map(str, _MAGNITUDES))}"
_SAMPLES = len(_MAGNITUDES)


def main() -> None:
    """Draws the figure that the command line describes."""
    parser = commands.parser("show_augmentations", __doc__)
    parser.add_argument("--image", type=Path, help="a photograph")
    parser.add_argument("--other", type=Path, help="another, to mix it with")
    parser.add_argument("--size", type=int, default=192, help="side of the images, pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("augmentations.png"))
    arguments = parser.parse_args()
    try:
        pictures = [
            _picture(path, default)
            for path, default in ((arguments.image, "china.jpg"), (arguments.other, "flower.jpg"))
        ]
        figure = draw(pictures[0], pictures[1], arguments.size, arguments.seed)
    except UnreadableImageError as error:
        sys.exit(f"error: {error}")
    commands.save_figure(figure, arguments.out)


def draw(picture: Picture, other: Picture, size: int, seed: int) -> Figure:
    """Draws three samples of each augmentation.

    Args:
      picture: the photograph.
      other: the photograph to mix it with.
      size: side of the samples, pixels.
      seed: of the random numbers.
    """
    image, second = (center_crop(p.pixels(), size, 0) for p in (picture, other))
    rows = {
        "as it is": [image] * _SAMPLES,
        "random crop": [
            distorted_crop(picture, size, np.random.default_rng((seed, i))) for i in range(_SAMPLES)
        ],
        "MixUp": _mixtures(image, second, Mixing(mixup_alpha=1.0), seed),
        "CutMix": _mixtures(image, second, Mixing(cutmix=True), seed),
    }
    for name, operation in randaugment.OPERATIONS.items():
        rows[f"{name.replace('_', ' ')}, {_AT}"] = [
            operation(image, magnitude, np.random.default_rng((seed, magnitude)))
            for magnitude in _MAGNITUDES
        ]
    rows[f"four layers, {_AT}"] = [
        randaugment.randaugment(image, 4, magnitude, np.random.default_rng((seed, magnitude)))
        for magnitude in _MAGNITUDES
    ]
    return _draw_samples(rows)


def _mixtures(image: np.ndarray, other: np.ndarray, mixing: Mixing, seed: int) -> list[np.ndarray]:
    return [
        mixing.mix(image, other, 0, np.random.default_rng((seed, i)))[0] for i in range(_SAMPLES)
    ]


def _draw_samples(rows: dict[str, list[np.ndarray]], columns: int = 3) -> Figure:
    """Draws named rows of images, in several columns of rows."""
    height = -(-len(rows) // columns)
    figure = Figure(figsize=(5.4 * columns, 1.95 * height), dpi=60, layout="constrained")
    panels = figure.subplots(height, columns).T.ravel()
    for panel, (name, images) in zip(panels, rows.items(), strict=False):
        gap = np.full((len(images[0]), 4, 3), 255, np.uint8)
        parts = [part for image in images for part in (image, gap)]
        panel.imshow(np.concatenate(parts[:-1], axis=1))
        panel.set_title(name, fontsize=11)
    for panel in panels:
        panel.set_axis_off()
    return figure


def _picture(path: Path | None, default: str) -> Picture:
    if path:
        return Picture(path, str(path))
    from sklearn.datasets import load_sample_image

    return Picture(np.asarray(load_sample_image(default)), default)


if __name__ == "__main__":
    main()
