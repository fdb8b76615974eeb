"""Accuracy against multiply-adds, parameters and training time: which comparison is fair?

    python -m experiments.studies.efficiency --budget=cpu --data_dir=TFDS_DIR

Small NFNets (with AGC), NF-RegNets and EfficientNets, each in three sizes, learn CIFAR-10 (the
embedded digits, without ``--data_dir``) for as many epochs, with learning rates chosen as
``contest`` says. NFNets were compared with EfficientNets by the time of a training step (Brock et
al. 2021b, arXiv:2102.06171, figure 1); here all three axes stand side by side, above those of the
published networks on ImageNet.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import nfnets_jax
from experiments.published_results import PUBLISHED, TIMES_SOURCE
from experiments.studies import contest, grid
from experiments.studies.contest import Contender, Effort, Results
from nfnets_jax.atomic import atomic_write
from nfnets_jax.models import counting

EFFORTS = {
    "smoke": Effort(0.2, (64,), (0.2,), seeds=1),
    "cpu": Effort(1, (64,), (0.2, 0.8), seeds=3, image_size=16),
    "gpu": Effort(60, (256,), (0.05, 0.1, 0.2, 0.4), seeds=3),
}
_COLORS = {"NFNet": "C1", "NF-RegNet": "C2", "EfficientNet": "C3"}
AXES = {
    "multiply_adds": "multiply-adds an image",
    "parameters": "parameters",
    "seconds": "seconds of training, 1,000 images",
}


def main() -> None:
    """Runs the study."""
    grid.command(__doc__.splitlines()[0], "efficiency", study)


def contenders(budget: str) -> dict[str, Contender]:
    """By family and size: of about 5, 8, 20 or 60 million multiply-adds at 32 pixels."""

    def nfnet(
        size: str, width: tuple[int, ...], depth: tuple[int, ...], group_size: int
    ) -> dict[str, Contender]:
        stem = ((16, 1), (width[0] // 2, 1))
        overrides = {"width": width, "depth": depth, "stem": stem, "group_size": group_size}
        return {f"NFNet {size}": Contender("nfnet_tiny", _COLORS["NFNet"], 0.01, overrides)}

    def nf_regnet(
        size: str, width: tuple[int, ...], depth: tuple[int, ...]
    ) -> dict[str, Contender]:
        stem, strides = ((width[0], 2),), (1, 1, 2, 2)
        overrides = {"width": width, "depth": depth, "stem": stem, "strides": strides}
        return {f"NF-RegNet {size}": Contender("nf_regnet_b0", _COLORS["NF-RegNet"], 0, overrides)}

    def efficientnet(size: str, width: float, depth: float) -> dict[str, Contender]:
        overrides = {"width_factor": width, "depth_factor": depth}
        color = _COLORS["EfficientNet"]
        return {f"EfficientNet {size}": Contender("efficientnet_b0_small", color, 0, overrides)}

    small = (
        nfnet("S", (16, 48, 96, 96), (1, 1, 2, 1), 8)
        | nf_regnet("S", (16, 32, 64, 128), (1, 1, 2, 2))
        | efficientnet("S", 0.35, 0.35)
    )
    if budget == "smoke":
        return small
    medium = (
        nfnet("M", (32, 64, 144, 144), (1, 1, 2, 1), 16)
        | nf_regnet("M", (24, 48, 96, 192), (1, 2, 2, 2))
        | efficientnet("M", 0.5, 0.7)
    )
    if budget == "cpu":
        tiny = (
            nfnet("XS", (16, 32, 48, 48), (1, 1, 1, 1), 8)
            | nf_regnet("XS", (16, 24, 48, 96), (1, 1, 2, 1))
            | efficientnet("XS", 0.25, 0.35)
        )
        return tiny | small | medium
    large = (
        nfnet("L", (64, 128, 256, 256), (1, 1, 2, 1), 16)
        | nf_regnet("L", (32, 64, 128, 256), (1, 2, 4, 4))
        | efficientnet("L", 0.8, 0.8)
    )
    return small | medium | large


class Point(NamedTuple):
    """A network by what it costs, of ``AXES`` as far as known, and its accuracy.

    ``top1`` is in percent, the mean of its seeds; ``spread`` is from there to the lowest of them
    and to the highest.
    """

    family: str
    name: str
    costs: Mapping[str, float]
    top1: float
    spread: tuple[float, float] = (0.0, 0.0)


def study(workdir: Path, budget: str, data_dir: Path | None) -> None:
    """Trains, and writes the report."""
    networks, effort = contenders(budget), EFFORTS[budget]
    results = contest.compete(workdir, budget, networks, effort, data_dir)
    image_size = results.common["image_size"]
    points = [_point(name, networks[name], results, image_size) for name in networks]
    imagenet = [] if budget == "smoke" else published()
    with atomic_write(workdir / "efficiency.png") as partial:
        _draw(points, imagenet).savefig(partial, format="png")
    body = "\n\n".join(
        [
            f"Here {_verdict(points)}",
            *([f"Of the published networks on ImageNet {_verdict(imagenet)}"] if imagenet else []),
            _of_step_time(points, effort),
            contest.explanation(effort, len(results.tries)),
            "![Top-1 against multiply-adds, parameters and time](efficiency.png)",
            _table(points),
            "Seconds are of a thousand images of the median run; of the published networks, of "
            f"training on one TPUv3 core ({TIMES_SOURCE}).",
        ]
    )
    rows = [*results.tries, *results.finals]
    grid.write_report(workdir, "Accuracy by what it costs", rows, body, results.common)


def _point(name: str, contender: Contender, results: Results, image_size: int) -> Point:
    runs = [row for row in results.finals if row["contender"] == name]
    costs = _counts(contender.model, contender.overrides, image_size)
    speeds = [row["images_per_second"] for row in runs if row["images_per_second"]]
    if speeds:
        costs["seconds"] = 1000 / statistics.median(speeds)
    (top1,) = results.top1(name).values()
    mean = statistics.mean(top1)
    spread = 100 * (mean - min(top1)), 100 * (max(top1) - mean)
    return Point(name.split()[0], name, costs, 100 * mean, spread)


def _counts(name: str, overrides: Mapping[str, Any], image_size: int) -> dict[str, float]:
    summary = counting.summarize(nfnets_jax.create_model(name, 10, **overrides), image_size)
    return {"multiply_adds": summary.work.multiply_adds, "parameters": summary.parameters}


def published() -> list[Point]:
    """NFNets and EfficientNets on ImageNet, timed in steps of 32 images."""
    points = []
    for name, figures in PUBLISHED.items():
        if figures.top1 is not None:
            family = {"nfnet": "NFNet", "efficientnet": "EfficientNet"}[name.split("_")[0]]
            costs = _counts(name, {}, nfnets_jax.create_model(name).config.test_size)
            if figures.tpu_ms is not None:
                costs["seconds"] = figures.tpu_ms / 32
            points.append(Point(family, name, costs, figures.top1))
    return points


def front(points: Sequence[Point], axis: str) -> list[Point]:
    """Those that no other one matches at the same cost or less, from the cheapest on."""
    found: list[Point] = []
    known = [point for point in points if axis in point.costs]
    for point in sorted(known, key=lambda point: (point.costs[axis], -point.top1)):
        if not found or point.top1 > found[-1].top1:
            found.append(point)
    return found


def _verdict(points: Sequence[Point]) -> str:
    named = [
        f"by {title} {', '.join(point.name for point in front(points, axis))}"
        for axis, title in AXES.items()
    ]
    return f"nothing cheaper is as accurate as: {'; '.join(named)}."


def _of_step_time(points: Sequence[Point], effort: Effort) -> str:
    """Whether NFNets are ahead by time, as the paper has it, and if not, what was made sure of."""
    nfnets, efficientnets = (
        [point for point in points if point.family == family]
        for family in ("NFNet", "EfficientNet")
    )
    overtaken = sum(matched(point, nfnets, "seconds") for point in efficientnets)
    behind = sum(matched(point, efficientnets, "seconds") for point in nfnets)
    found = (
        f"By time, {overtaken} of {len(efficientnets)} EfficientNets have an NFNet that is as fast "
        f"and as accurate, and {behind} of {len(nfnets)} NFNets such an EfficientNet"
    )
    if overtaken > behind:
        return f"{found}: as in the paper's figure 1, NFNets are ahead."
    return (
        f"{found}: the paper's figure 1, where NFNets are ahead, is not confirmed. Made sure of: "
        "networks of a size have about as many multiply-adds, and all learn the same images in as "
        "many steps, each at the best learning rate that was tried; NFNets clip their gradients, "
        "as published, the others do not. Not answered: what larger ones come to in a training "
        f"longer than {contest.epochs(effort)}, and on an accelerator."
    )


def matched(point: Point, others: Sequence[Point], axis: str) -> bool:
    """Whether one of the others costs no more and is as accurate."""
    return any(
        axis in point.costs
        and axis in other.costs
        and other.costs[axis] <= point.costs[axis]
        and other.top1 >= point.top1
        for other in others
    )


def _table(points: Sequence[Point]) -> str:
    costs = ("million multiply-adds", "million parameters", "seconds")
    header = ("network", *costs, "test top-1", "lowest", "highest")
    return grid.markdown_table(
        header,
        [
            (
                point.name,
                point.costs["multiply_adds"] / 1e6,
                point.costs["parameters"] / 1e6,
                point.costs.get("seconds"),
                f"{point.top1:.1f}%",
                f"{point.top1 - point.spread[0]:.1f}%",
                f"{point.top1 + point.spread[1]:.1f}%",
            )
            for point in points
        ],
    )


def _draw(points: Sequence[Point], imagenet: Sequence[Point]) -> Figure:
    rows = {"learned here; mean and extremes": points}
    if imagenet:
        rows["published, ImageNet"] = imagenet
    figure = Figure(figsize=(11, 3.6 * len(rows)), dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), len(AXES), squeeze=False, sharey="row")
    for line, (source, shown) in zip(panels, rows.items(), strict=True):
        for panel, (axis, title) in zip(line, AXES.items(), strict=True):
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
        spread = list(zip(*(point.spread for point in known), strict=True))
        panel.errorbar(costs, top1, spread, fmt="o-", capsize=3, color=color, label=family)
    panel.grid(alpha=0.3)


if __name__ == "__main__":
    main()
