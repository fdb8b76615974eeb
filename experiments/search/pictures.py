"""Pictures of a search: the cloud of networks, their frontier, distribution functions, scaling."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..studies import intervals
from .rounds import Level
from .scaled_sizes import Scaled
from .study import Found, Round, Times

_SIZE = {"dpi": 110, "layout": "constrained"}


def pictures(found: Found) -> dict[str, Figure]:
    """Returns the pictures by name; those that a search did not reach are left out."""
    drawn: dict[str, Figure] = {}
    if found.times:
        drawn = {
            "cloud": _cloud(found.rounds, found.times),
            "distributions": _distributions(found.levels),
        }
    if found.final:
        drawn["scaling"] = _scaling(found.final.scaled)
    return drawn


def frontier(seconds: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Returns the places of the networks that no other is both faster and better than.

    They are in the order of their time; of two equally fast ones the better is there.
    """
    found: list[int] = []
    for place in sorted(range(len(seconds)), key=lambda at: (seconds[at], errors[at])):
        if not found or errors[place] < errors[found[-1]]:
            found.append(place)
    return found


def _cloud(rounds: Sequence[Round], times: Times) -> Figure:
    """Draws error against the predicted training step, and each round's frontier."""
    figure = Figure(figsize=(7, 4.5), **_SIZE)  # type: ignore[arg-type]
    axes = figure.subplots()
    for index, each in enumerate(rounds):
        seconds = [times.model.ratio(network.cost) for network in each.drawn]
        errors = [100 * (1 - top1) for top1 in each.top1]
        color, label = f"C{index}", f"{len(errors)} networks, {each.epochs:g} epochs"
        axes.plot(seconds, errors, "o", color=color, alpha=0.6, label=label)
        best = frontier(seconds, errors)
        axes.step(
            [seconds[at] for at in best], [errors[at] for at in best], color=color, where="post"
        )
    axes.axvline(times.baseline.median, color="C7", ls=":", label="EfficientNet's step, measured")
    axes.set(
        xlabel="training step over the anchor's, by the model of time",
        ylabel="held-out error, %",
        title="lines: networks that no other is faster and better than",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _distributions(found: Mapping[str, Sequence[Level]]) -> Figure:
    """Draws the empirical distribution functions of the error, a picture a dimension."""
    columns = 3
    rows = max(1, math.ceil(len(found) / columns))
    figure = Figure(figsize=(4 * columns, 2.8 * rows), **_SIZE)  # type: ignore[arg-type]
    places = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, each) in zip(places, found.items(), strict=False):
        for level in each:
            errors = np.sort(100 * (1 - np.array(level.top1)))
            shares = np.arange(1, len(errors) + 1) / len(errors)
            label = f"{level.value} ({len(errors)})"
            axes.step([errors[0], *errors], [0, *shares], where="post", label=label)
        axes.set(title=name.replace("_", " "), xlabel="held-out error, %", ylabel="share")
        axes.legend(fontsize=7)
    for axes in list(figure.axes)[len(found) :]:
        axes.set_axis_off()
    return figure


def _scaling(scaled: Scaled) -> Figure:
    """Draws top-1 of the splits by resolution, and the gains over the scaled baseline."""
    figure = Figure(figsize=(9, 4), **_SIZE)  # type: ignore[arg-type]
    left, right = figure.subplots(1, 2)
    for share in sorted({split.depth_share for split in scaled.splits}):
        own = [
            (split.size, intervals.mean(top1))
            for split, top1 in zip(scaled.splits, scaled.top1, strict=True)
            if split.depth_share == share
        ]
        _bars(left, own, f"depth's share {share:g}")
    left.set(xlabel="pixels", ylabel="held-out top-1, %", title="twice the multiply-adds")
    left.legend()
    _bars(right, list(scaled.gains.items()), "")
    right.axhline(0, color="C7")
    right.set(
        xlabel="times the multiply-adds",
        ylabel="points of held-out top-1",
        title="winner less EfficientNet, both scaled",
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _bars(axes: Axes, points: Sequence[tuple[float, intervals.Interval]], label: str) -> None:
    """Draws intervals of shares, in points."""
    means, *ends = 100 * np.array([interval for _, interval in points]).T
    bars = np.nan_to_num(np.abs(ends - means))  # One seed has no interval.
    axes.errorbar([x for x, _ in points], means, bars, fmt="o-", capsize=3, label=label)
