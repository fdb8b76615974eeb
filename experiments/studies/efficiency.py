"""Tests the claim that NFNets are more accurate than EfficientNets at equal training time.

The claim is from NFNets (Brock et al. 2021b, arXiv:2102.06171, section 5, figure 1), which compares
networks by the time of a training step.

    python -m experiments.studies.efficiency --budget=cpu --data_dir=TFDS_DIR

Design: NFNets with AGC, NF-RegNets and EfficientNets, each in three sizes with about as many
multiply-adds, learn CIFAR-10 for the same number of epochs. Rates and thresholds are tuned as
``tuned_training`` describes. Accuracy is set against multiply-adds, parameters and training time,
above the same axes for the published networks on ImageNet. Without ``--data_dir`` the networks
learn the embedded digits.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import nfnets_jax
from nfnets_jax.models import counting
from nfnets_jax.models.registry import Model

from .. import process
from ..published_results import PUBLISHED
from . import command, intervals, results, tuned_training
from .tuned_training import Arm, Budget, TunedRuns

BUDGETS = {
    "smoke": Budget(0.1, (64,), (0.2,), seeds=1, tunes=False),
    "cpu": Budget(1, (64,), (0.2, 0.8), seeds=3, image_size=16),
    "gpu": Budget(60, (256,), (0.05, 0.1, 0.2, 0.4), seeds=3),
}
_COLORS = {"NFNet": "C1", "NF-RegNet": "C2", "EfficientNet": "C3"}
_AXES = {
    "multiply_adds": "multiply-adds per image",
    "parameters": "parameters",
    "seconds": "seconds of training per 1,000 images",
}
# Images per device in the published timings of a training step.
_PUBLISHED_BATCH = 32
# By what comes before a network's number.
_PUBLISHED_FAMILIES = {"nfnet_f": "NFNet", "efficientnet_b": "EfficientNet"}


def networks(budget: str) -> dict[str, Arm]:
    """Returns the networks by family and size.

    At 32 pixels, sizes XS to L have about 5, 8, 20 and 60 million multiply-adds; XXS compiles fast.
    """
    sizes = {
        "XXS": (
            _nfnet((8, 8, 8, 8), (1, 1, 1, 1), group_size=4),
            _nf_regnet((8, 8, 8, 8), (1, 1, 1, 1)),
            _efficientnet(0.1, 0.1),
        ),
        "XS": (
            _nfnet((16, 32, 48, 48), (1, 1, 1, 1), group_size=8),
            _nf_regnet((16, 24, 48, 96), (1, 1, 2, 1)),
            _efficientnet(0.25, 0.35),
        ),
        "S": (
            _nfnet((16, 48, 96, 96), (1, 1, 2, 1), group_size=8),
            _nf_regnet((16, 32, 64, 128), (1, 1, 2, 2)),
            _efficientnet(0.35, 0.35),
        ),
        "M": (
            _nfnet((32, 64, 144, 144), (1, 1, 2, 1), group_size=16),
            _nf_regnet((24, 48, 96, 192), (1, 2, 2, 2)),
            _efficientnet(0.5, 0.7),
        ),
        "L": (
            _nfnet((64, 128, 256, 256), (1, 1, 2, 1), group_size=16),
            _nf_regnet((32, 64, 128, 256), (1, 2, 4, 4)),
            _efficientnet(0.8, 0.8),
        ),
    }
    chosen = {"smoke": ("XXS",), "cpu": ("XS", "S", "M"), "gpu": ("S", "M", "L")}[budget]
    return {
        f"{family} {size}": network
        for size in chosen
        for family, network in zip(_COLORS, sizes[size], strict=True)
    }


def _nfnet(width: tuple[int, ...], depth: tuple[int, ...], group_size: int) -> Arm:
    stem = ((16, 1), (width[0] // 2, 1))
    overrides = {"width": width, "depth": depth, "stem": stem, "group_size": group_size}
    return Arm("nfnet_tiny", _COLORS["NFNet"], (0.01,), overrides)


def _nf_regnet(width: tuple[int, ...], depth: tuple[int, ...]) -> Arm:
    stem, strides = ((width[0], 2),), (1, 1, 2, 2)
    overrides = {"width": width, "depth": depth, "stem": stem, "strides": strides}
    return Arm("nf_regnet_b0", _COLORS["NF-RegNet"], overrides=overrides)


def _efficientnet(width: float, depth: float) -> Arm:
    overrides = {"width_factor": width, "depth_factor": depth}
    return Arm("efficientnet_b0_small", _COLORS["EfficientNet"], overrides=overrides)


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Trains the networks and sets their accuracy against their costs."""
    compared = networks(budget)
    runs = tuned_training.train_tuned(workdir, budget, compared, BUDGETS[budget], data_dir)
    points = [_point(name, network, runs) for name, network in compared.items()]
    return results.Results(
        conditions={**runs.conditions, "seeds": BUDGETS[budget].seeds},
        rows=[*runs.tuning, *runs.final],
        tables=[_cost_table(points), tuned_training.accuracy_table(runs, compared)],
        pictures={"efficiency": _draw(points, [] if budget == "smoke" else published())},
    )


class Point(NamedTuple):
    """Accuracy and costs of a network.

    Attributes:
      family: key of ``_COLORS``.
      name: of the network.
      costs: by key of ``_AXES``, where known.
      top1: mean over the seeds, percent.
      bars: distances from the mean to the ends of its 95% bootstrap interval, percentage points.
    """

    family: str
    name: str
    costs: Mapping[str, float]
    top1: float
    bars: tuple[float, float] = (0.0, 0.0)


def _point(name: str, network: Arm, runs: TunedRuns) -> Point:
    model = nfnets_jax.create_model(network.model, 10, **network.overrides)
    costs = _counts(model, runs.conditions["image_size"])
    final = [row for row in runs.final if row["arm"] == name]
    speeds = [row["images_per_second"] for row in final if row["images_per_second"]]
    if speeds:
        costs["seconds"] = 1000 / statistics.median(speeds)
    (values,) = runs.top1(name).values()
    top1, low, high = (100 * end for end in intervals.mean(values))
    bars = (0.0, 0.0) if len(values) < 2 else (top1 - low, high - top1)
    return Point(name.split()[0], name, costs, top1, bars)


def _counts(model: Model, image_size: int) -> dict[str, float]:
    summary = counting.summarize(model, image_size)
    return {"multiply_adds": summary.work.multiply_adds, "parameters": summary.parameters}


def published() -> list[Point]:
    """Returns NFNets and EfficientNets on ImageNet, timed on a TPUv3."""
    points = []
    for name, (figures, *_) in PUBLISHED.items():
        family = _PUBLISHED_FAMILIES.get(name[:-1])
        if family and figures.top1 is not None:
            model = nfnets_jax.create_model(name)
            costs = _counts(model, model.config.test_size)
            if figures.tpu_ms is not None:
                costs["seconds"] = figures.tpu_ms / _PUBLISHED_BATCH
            points.append(Point(family, name, costs, figures.top1))
    return points


def _cost_table(points: Sequence[Point]) -> str:
    return results.table(
        "Costs; seconds are of training on 1,000 images, the median over the seeds.",
        ("network", "multiply-adds (million)", "parameters (million)", "seconds"),
        [
            (
                point.name,
                point.costs["multiply_adds"] / 1e6,
                point.costs["parameters"] / 1e6,
                point.costs.get("seconds"),
            )
            for point in points
        ],
    )


def _draw(points: Sequence[Point], imagenet: Sequence[Point]) -> Figure:
    rows = {"trained here; means and 95% intervals": points}
    if imagenet:
        rows["published, ImageNet"] = imagenet
    figure = Figure(figsize=(11, 3.6 * len(rows)), dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), len(_AXES), squeeze=False, sharey="row")
    for line, (source, shown) in zip(panels, rows.items(), strict=True):
        for panel, (axis, title) in zip(line, _AXES.items(), strict=True):
            _plot(panel, shown, axis)
            panel.set(xscale="log", xlabel=title)
        line[0].set(ylabel="top-1, %", title=source)
        line[0].legend()
    return figure


def _plot(panel: Axes, points: Sequence[Point], axis: str) -> None:
    for family, color in _COLORS.items():
        known = [point for point in points if point.family == family and axis in point.costs]
        if not known:
            continue
        costs, top1 = [point.costs[axis] for point in known], [point.top1 for point in known]
        bars = list(zip(*(point.bars for point in known), strict=True))
        panel.errorbar(costs, top1, bars, fmt="o-", capsize=3, color=color, label=family)
    panel.grid(alpha=0.3)


if __name__ == "__main__":
    process.use_cores_as_devices()
    command.run("efficiency", __doc__, study)
