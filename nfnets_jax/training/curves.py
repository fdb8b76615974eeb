"""Curves of loss and accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from nfnets_jax.atomic import atomic_write
from nfnets_jax.training.classification import CLASSIFICATION
from nfnets_jax.training.task import Score

Rows = Sequence[Mapping[str, Any]]


def plot_curves(
    rows: Rows, path: Path, title: str = "", score: Score = CLASSIFICATION.score
) -> None:
    """Draws loss and score over the steps, of training and test images.

    Args:
      rows: the rows of ``metrics.jsonl``.
      path: the PNG file to write.
      title: above both.
      score: the metric beside the loss.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    if title:
        figure.suptitle(title)
    for axis, name, label in zip(
        axes, ("loss", score.name), ("loss (nats)", score.label), strict=True
    ):
        train = "training (labels smoothed)" if name == "loss" else "training"
        _curve(axis, rows, "train", name, train, color="C0", alpha=0.6)
        _curve(axis, rows, "test", name, "test", color="C1", marker=".")
        _curve(axis, rows, "test", f"ema_{name}", "test, moving average", color="C2", marker=".")
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    if axes[0].lines:
        axes[0].set_yscale("log")
        # Plain numbers: within a decade the usual ones are 1.392 x 10^0.
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _curve(axis: Axes, rows: Rows, split: str, name: str, label: str, **style: Any) -> None:
    points = [(r["step"], r[name]) for r in rows if r["split"] == split and r.get(name) is not None]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, **style)
