"""Measures by how much AGC raises the largest stable learning rate, by batch size and depth.

NFNets (Brock et al. 2021b, arXiv:2102.06171, section 4.1, figure 2) train normalizer-free networks
with large batches by AGC. Large batches take large learning rates, and the paper's mechanism is
that unclipped gradients are not stable there. ``batch_scaling_accuracy`` measures what follows.

    python -m experiments.studies.batch_scaling --budget=cpu --data_dir=TFDS_DIR

Design: a narrow network of equal residual blocks, batch-normalized, normalizer-free, and
normalizer-free with AGC at several thresholds, learns with a constant learning rate after a
warm-up. A rate is stable if the mean training loss of the last quarter of the steps is below that
at chance. The largest stable rate is found by bisection on a ladder of rates that are a factor of
sqrt(2) apart, for each seed by itself. Without ``--data_dir`` the networks learn the embedded
digits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

import nfnets_jax
from nfnets_jax.data.sources import Dataset
from nfnets_jax.models.registry import Model

from .. import population, process
from ..pure_run import Run, Task
from . import command, grid, images, intervals, results


class Budget(NamedTuple):
    """The size of the study.

    Attributes:
      batch_sizes: images per step, for each number of blocks of the network.
      thresholds: of AGC.
      seeds: of each point.
      steps: updates of each run, the first quarter of them the warm-up.
      image_size: side of CIFAR-10's images in pixels.
      width: channels of the residual stream.
      rungs: number of rates, the lowest of which is ``_LOWEST_RATE``.
    """

    batch_sizes: Mapping[int, tuple[int, ...]]
    thresholds: tuple[float, ...]
    seeds: int
    steps: int
    image_size: int
    width: int
    rungs: int


BUDGETS = {
    "smoke": Budget({2: (16, 64)}, (0.01,), 1, steps=8, image_size=8, width=8, rungs=3),
    "cpu": Budget(
        {8: (64, 256, 1024), 24: (64, 256)},
        (0.01, 0.04, 0.16),
        seeds=3,
        steps=32,
        image_size=8,
        width=16,
        rungs=31,
    ),
    "gpu": Budget(
        dict.fromkeys((8, 16, 33), (64, 256, 1024, 2048)),
        (0.01, 0.04, 0.16),
        seeds=5,
        steps=200,
        image_size=16,
        width=64,
        rungs=31,
    ),
}
NORMALIZED, FREE = "batch norm", "normalizer-free"
_MODELS = {NORMALIZED: "nfnet_tiny_bn", FREE: "nfnet_tiny"}
_LOWEST_RATE = 2.0**-6
_CLASSES = 10


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Finds the largest stable rate of every arm, batch size, depth and seed."""
    design = BUDGETS[budget]
    dataset = images.open_images(data_dir, design.image_size)
    dataset = dataclasses.replace(dataset, test=None)  # Only training losses are measured.
    conditions = {
        "budget": budget,
        "data": images.name(data_dir),
        "image_size": images.side(data_dir, design.image_size),
        "width": design.width,
        "steps": design.steps,
        "rungs": design.rungs,
    }
    rows: list[grid.Row] = []
    points = [
        {"network": network, "batch_size": batch_size, "blocks": blocks}
        for blocks, batch_sizes in design.batch_sizes.items()
        for batch_size in batch_sizes
        for network in _MODELS
    ]
    for number, point in enumerate(points, 1):
        shown = "{network}, batch {batch_size}, {blocks} blocks".format(**point)
        print(f"search {number} of {len(points)}: {shown}", flush=True)
        rows += _search(workdir, conditions, design, point, dataset)
    limits = largest_rates(rows)
    return results.Results(
        {**conditions, "seeds": design.seeds},
        rows,
        [rate_table(limits), ratio_table(limits)],
        {"stable_rates": draw(limits)},
    )


def _search(
    workdir: Path,
    conditions: grid.Settings,
    design: Budget,
    point: grid.Settings,
    dataset: Dataset,
) -> list[grid.Row]:
    """Bisects all arms and seeds of one network together: each round is a population."""
    task = Task(
        create_model(design, point["network"], point["blocks"]),
        point["batch_size"],
        design.steps,
        warmup_steps=design.steps // 4,
        decays=False,
    )
    thresholds = (0.0,) if point["network"] == NORMALIZED else (0.0, *design.thresholds)
    arms = [
        {**point, "clipping": clipping, "seed": seed}
        for clipping in thresholds
        for seed in range(design.seeds)
    ]
    rows: list[grid.Row] = []

    def are_stable(rungs: Sequence[int], places: Sequence[int]) -> list[bool]:
        members = [
            {**arms[place], "learning_rate": rate_of(rung)}
            for place, rung in zip(places, rungs, strict=True)
        ]
        chunks = grid.in_chunks(members, population.at_once(task))
        found = grid.run_chunks(
            workdir, conditions, chunks, lambda some: _final_losses(task, dataset, some)
        )
        rows.extend(found)
        return [is_stable(row["loss"]) for row in found]

    bisect(are_stable, len(arms), design.rungs)
    return rows


def bisect(
    are_stable: Callable[[Sequence[int], Sequence[int]], Sequence[bool]], count: int, rungs: int
) -> list[int]:
    """Finds the highest stable rung of several ladders at once.

    Args:
      are_stable: ``(rungs, places) -> booleans``, whether each ladder, given by its place, is
        stable at a rung.
      count: number of ladders.
      rungs: of each ladder.

    Returns:
      The rung of each ladder, from 0 on, as if all above an unstable one were unstable; -1 if none
      is stable.
    """
    stable, unstable = [-1] * count, [rungs] * count
    while places := [place for place in range(count) if unstable[place] - stable[place] > 1]:
        middle = [(stable[place] + unstable[place]) // 2 for place in places]
        for place, rung, is_fine in zip(places, middle, are_stable(middle, places), strict=True):
            (stable if is_fine else unstable)[place] = rung
    return stable


def rate_of(rung: int) -> float:
    """Returns the learning rate of a rung of the ladder, with six digits."""
    return float(f"{_LOWEST_RATE * math.sqrt(2) ** rung:.6g}")


def is_stable(loss: float | None) -> bool:
    """Returns whether a run's final loss, None where it diverged, is below that at chance."""
    return loss is not None and loss < math.log(_CLASSES)


def create_model(design: Budget, network: str, blocks: int) -> Model:
    """Creates a network of equal blocks, none of which changes resolution or width."""
    return nfnets_jax.create_model(
        _MODELS[network],
        _CLASSES,
        width=(design.width,),
        depth=(blocks,),
        stem=((design.width, 2),),
        strides=(1,),
        group_size=design.width // 2,
        spatial=("conv1",),
        final_expansion=0,
    )


def _final_losses(
    task: Task, dataset: Dataset, members: Sequence[grid.Settings]
) -> list[dict[str, Any]]:
    """Returns the mean loss of the last quarter of each run's steps; NaN where it diverged."""
    runs = [
        # Without weight decay: it would bound the kernels and so, by itself, the rate.
        Run(member["seed"], member["learning_rate"], member["clipping"], 0.0)
        for member in members
    ]
    outcomes = population.train(task, dataset, runs)
    last = max(1, task.steps // 4)
    return [
        {"loss": float(np.mean(outcome.losses[-last:])), "diverged_at": outcome.diverged_at}
        for outcome in outcomes
    ]


# The largest stable rates of the seeds, by arm, batch size and blocks.
Limits = dict[tuple[str, int, int], list[float]]


def largest_rates(rows: Sequence[grid.Row]) -> Limits:
    """Returns the largest stable rate of each seed; half the lowest where none was stable."""
    by_seed: dict[tuple[str, int, int], dict[int, float]] = {}
    for row in rows:
        key = (arm_name(row["network"], row["clipping"]), row["batch_size"], row["blocks"])
        seeds = by_seed.setdefault(key, {})
        rate = row["learning_rate"] if is_stable(row["loss"]) else _LOWEST_RATE / 2
        seeds[row["seed"]] = max(seeds.get(row["seed"], 0.0), rate)
    return {key: list(seeds.values()) for key, seeds in by_seed.items()}


def arm_name(network: str, clipping: float) -> str:
    """Returns the name of an arm in tables and pictures."""
    return f"AGC {clipping:g}" if clipping else network


def rate_table(limits: Limits) -> str:
    """Returns the largest stable rates in Markdown, means over the seeds of their logarithms."""
    lines = []
    for (arm, batch_size, blocks), rates in sorted(limits.items(), key=_order):
        rate = _exponential(intervals.mean(np.log2(rates).tolist()))
        lines.append((blocks, batch_size, arm, rate.text(".3g")))
    return results.table(
        "Largest stable learning rate: geometric mean over the seeds with its 95% bootstrap "
        f"interval; seeds: {len(next(iter(limits.values())))}.",
        ("blocks", "batch size", "arm", "rate"),
        lines,
    )


def ratio_table(limits: Limits) -> str:
    """Returns each arm's largest stable rate over that of no clipping, in Markdown."""
    lines = []
    for (arm, batch_size, blocks), rates in sorted(limits.items(), key=_order):
        if arm != FREE:
            plain = limits[FREE, batch_size, blocks]
            ratio = intervals.difference(np.log2(rates).tolist(), np.log2(plain).tolist())
            lines.append((blocks, batch_size, arm, _exponential(ratio).text(".3g")))
    return results.table(
        "Largest stable learning rate over that of the normalizer-free network without AGC, with "
        "its 95% bootstrap interval.",
        ("blocks", "batch size", "arm", "ratio"),
        lines,
    )


def _exponential(logarithms: intervals.Interval) -> intervals.Interval:
    return intervals.Interval(*(2**end for end in logarithms))


def _order(item: tuple[tuple[str, int, int], list[float]]) -> tuple[int, int]:
    _, batch_size, blocks = item[0]
    return blocks, batch_size


def draw(limits: Limits) -> Figure:
    """Draws the largest stable rate by batch size, a panel for each depth."""
    depths = sorted({blocks for _, _, blocks in limits})
    figure = Figure(figsize=(1.5 + 4 * len(depths), 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(depths), squeeze=False, sharey=True)[0]
    colors = {NORMALIZED: "C7", FREE: "C0"}
    for arm in dict.fromkeys(arm for arm, _, _ in limits):
        colors.setdefault(arm, f"C{len(colors) - 1}")
    for panel, blocks in zip(panels, depths, strict=True):
        for arm, color in colors.items():
            sizes = sorted({size for _, size, n in limits if n == blocks})
            found = [intervals.mean(np.log2(limits[arm, size, blocks]).tolist()) for size in sizes]
            rates, *ends = 2 ** np.array(found).T
            bars = np.nan_to_num(np.abs(ends - rates))  # One seed has no interval.
            panel.errorbar(sizes, rates, bars, fmt="o-", capsize=3, color=color, label=arm)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.set_xticks(sizes)
        panel.yaxis.set_major_locator(LogLocator(base=2))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set(xlabel="batch size", title=f"{blocks} blocks")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("largest stable learning rate")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.suptitle(title_of(limits))
    return figure


def title_of(limits: Limits) -> str:
    """Returns the finding: the extremes of the ratios of the threshold that raises rates most."""
    ratios: dict[str, list[float]] = {}
    for (arm, size, blocks), rates in limits.items():
        if arm not in (NORMALIZED, FREE):
            plain = limits[FREE, size, blocks]
            ratios.setdefault(arm, []).append(
                float(np.mean(np.log2(rates)) - np.mean(np.log2(plain)))
            )
    arm, found = max(ratios.items(), key=lambda item: float(np.mean(item[1])))
    return f"{arm} takes {2 ** min(found):.2g} to {2 ** max(found):.2g} times the learning rate"


if __name__ == "__main__":
    process.use_cores_as_devices()
    command.run("batch_scaling", __doc__, study)
