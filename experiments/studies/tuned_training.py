"""Trains small networks as populations, each arm with a rate and a threshold tuned for it.

The learning rate of each arm and batch size, and AGC's threshold where the arm clips, are tuned on
a tenth of the training images, which those runs do not learn from, one run per pair: first a small
grid, then the neighbours of the best pair, a factor of 2 away, until it has none that is better.
The best pair is then trained on all training images, once per seed, and each of these runs is
tested once. All runs take the same number of epochs. Learning rates are given for a batch of 256
and are proportional to the batch.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import nfnets_jax
from nfnets_jax.data.keyed_augmentation import KeyedAugmentation
from nfnets_jax.data.sources import Dataset

from .. import population
from ..pure_run import Run, Task
from . import grid, images, intervals, results

# Rounds of neighbours, each a step of the best pair.
_ROUNDS = 6
_RANDAUGMENT_LAYERS, _MIXUP_ALPHA = 4, 0.2  # NFNets, section 6.1.
_CLASSES = 10


class Arm(NamedTuple):
    """A network to tune and to train.

    Attributes:
      model: a registered name.
      color: of its line in pictures.
      clippings: thresholds of AGC to tune from; (0,) for no AGC.
      overrides: settings of the model that replace its own.
      augmented: whether images are RandAugmented and mixed, and not only shifted and flipped.
    """

    model: str
    color: str
    clippings: tuple[float, ...] = (0.0,)
    overrides: Mapping[str, Any] = {}
    augmented: bool = False


class Budget(NamedTuple):
    """The size of a study.

    Attributes:
      epochs: length of each run.
      batch_sizes: images per step.
      learning_rates: to tune from, for a batch of 256.
      seeds: runs with the tuned pair.
      image_size: side in pixels to which CIFAR-10's images are averaged.
      tunes: whether to tune; if not, the first rate and threshold are used.
    """

    epochs: float
    batch_sizes: tuple[int, ...]
    learning_rates: tuple[float, ...]
    seeds: int
    image_size: int = 32
    tunes: bool = True


class TunedRuns(NamedTuple):
    """All runs; ``top1`` is None where training diverged.

    Attributes:
      tuning: runs tested on held-out training images, one per pair of rate and threshold.
      final: runs tested on the test images, one per seed.
      conditions: settings shared by all runs.
    """

    tuning: list[grid.Row]
    final: list[grid.Row]
    conditions: grid.Settings

    def top1(self, arm: str) -> dict[int, list[float]]:
        """Returns test top-1 of each seed by batch size; 0 where training diverged."""
        found: dict[int, list[float]] = {}
        for row in self.final:
            if row["arm"] == arm:
                found.setdefault(row["batch_size"], []).append(row["top1"] or 0.0)
        return found

    def tuned(self, arm: str, batch_size: int) -> tuple[float, float]:
        """Returns the tuned learning rate, for a batch of 256, and the tuned threshold."""
        point = {"arm": arm, "batch_size": batch_size}
        row = next(row for row in self.final if point.items() <= row.items())
        return row["learning_rate"], row["clipping"]

    def is_at_edge(self, arm: str, batch_size: int) -> bool:
        """Returns whether the search ended before all neighbours of the tuned pair were tried."""
        own = [row for row in self.tuning if (row["arm"], row["batch_size"]) == (arm, batch_size)]
        return bool(own) and bool(untried_neighbours(own))


def train_tuned(
    workdir: Path,
    budget_name: str,
    arms: Mapping[str, Arm],
    budget: Budget,
    data_dir: Path | None,
) -> TunedRuns:
    """Tunes and trains on CIFAR-10, or on the embedded digits without ``data_dir``.

    Runs that the working directory already holds are not repeated.

    Raises:
      InputError: CIFAR-10 is not in ``data_dir``, or the directory holds another study.
    """
    dataset = images.open_images(data_dir, budget.image_size)
    held_out = len(dataset.train) // 10
    datasets = {0: dataset, held_out: dataset.hold_out(held_out)}
    size = images.side(data_dir, budget.image_size)
    conditions = {
        "budget": budget_name,
        "data": images.name(data_dir),
        "image_size": size,
        "epochs": budget.epochs,
    }

    def task_of(settings: grid.Settings) -> Task:
        learned = datasets[settings["held_out"]]
        flips = data_dir is not None  # A mirrored digit is another one.
        return _task(arms[settings["arm"]], settings["batch_size"], budget, learned, size, flips)

    def run(chunk: Sequence[grid.Settings]) -> list[dict[str, Any]]:
        task, runs = task_of(chunk[0]), []
        for settings in chunk:
            rate = settings["learning_rate"] * settings["batch_size"] / 256
            runs.append(Run(settings["seed"], rate, settings["clipping"]))
        outcomes = population.train(task, datasets[chunk[0]["held_out"]], runs)
        return [_figures(outcome, budget.epochs) for outcome in outcomes]

    def run_all(members: Sequence[grid.Settings]) -> list[grid.Row]:
        # Arms that differ in rate and threshold alone are one population.
        alike: dict[Any, list[grid.Settings]] = {}
        for settings in members:
            alike.setdefault((task_of(settings), settings["held_out"]), []).append(settings)
        chunks = [
            chunk
            for (task, _), some in alike.items()
            for chunk in grid.in_chunks(some, population.at_once(task))
        ]
        return grid.run_chunks(workdir, conditions, chunks, run)

    points = [{"arm": arm, "batch_size": size} for arm in arms for size in budget.batch_sizes]
    tuning = _tune(points, arms, budget, held_out, run_all) if budget.tunes else []
    members = []
    for point in points:
        pair = budget.learning_rates[0], arms[str(point["arm"])].clippings[0]
        if budget.tunes:
            pair = best_pair([row for row in tuning if point.items() <= row.items()])
        members += [_settings(point, pair, 0, seed) for seed in range(budget.seeds)]
    return TunedRuns(tuning, run_all(members), conditions)


def _settings(
    point: grid.Settings, pair: tuple[float, float], held_out: int, seed: int
) -> grid.Settings:
    rate, clipping = pair
    own = {"learning_rate": rate, "clipping": clipping, "held_out": held_out, "seed": seed}
    return {**point, **own}


def _tune(
    points: Sequence[grid.Settings],
    arms: Mapping[str, Arm],
    budget: Budget,
    held_out: int,
    run_all: Callable[[Sequence[grid.Settings]], list[grid.Row]],
) -> list[grid.Row]:
    """Runs the first grid at all points, then the neighbours of the best pairs."""
    pairs = {
        place: list(itertools.product(budget.learning_rates, arms[point["arm"]].clippings))
        for place, point in enumerate(points)
    }
    rows: list[grid.Row] = []
    for _ in range(_ROUNDS):
        rows += run_all(
            [_settings(points[at], pair, held_out, 0) for at in pairs for pair in pairs[at]]
        )
        pairs = {
            at: untried
            for at, point in enumerate(points)
            if (untried := untried_neighbours([r for r in rows if point.items() <= r.items()]))
        }
        if not pairs:
            break
    return rows


def best_pair(rows: Sequence[grid.Row]) -> tuple[float, float]:
    """Returns the rate and the threshold of the most accurate run; the lowest if all diverged."""
    best = max(rows, key=lambda r: (r["top1"] or 0.0, -r["learning_rate"], -r["clipping"]))
    return best["learning_rate"], best["clipping"]


def untried_neighbours(rows: Sequence[grid.Row]) -> list[tuple[float, float]]:
    """Returns the pairs without a run that differ from the best by a factor of 2 in one number."""
    tried = {(row["learning_rate"], row["clipping"]) for row in rows}
    rate, clipping = best_pair(rows)
    around = [(rate * 2, clipping), (rate / 2, clipping)]
    if clipping:
        around += [(rate, clipping * 2), (rate, clipping / 2)]
    return [pair for pair in around if pair not in tried]


def _task(
    arm: Arm, batch_size: int, budget: Budget, dataset: Dataset, size: int, flips: bool
) -> Task:
    steps = max(1, round(budget.epochs * len(dataset.train) / batch_size))
    # RandAugment takes images of three channels, which the digits are not.
    layers = _RANDAUGMENT_LAYERS if arm.augmented and dataset.channels == 3 else 0
    return Task(
        nfnets_jax.create_model(
            arm.model,
            _CLASSES,
            precision="tensorfloat32",
            dropout_rate=0.0,
            stochastic_depth_rate=0.0,
            **arm.overrides,
        ),
        batch_size,
        steps,
        warmup_steps=steps // 10,
        label_smoothing=0.1,
        augmentation=KeyedAugmentation(
            shift=size // 8,
            flip=flips,
            layers=layers,
            mixup_alpha=_MIXUP_ALPHA if arm.augmented else 0.0,
        ),
    )


def _figures(outcome: population.Outcome, epochs: float) -> dict[str, Any]:
    parts = np.array_split(outcome.losses, max(1, round(epochs)))
    means = [float(np.mean(part)) for part in parts]
    return {
        "top1": outcome.top1,
        "diverged_at": outcome.diverged_at,
        "images_per_second": round(outcome.images_per_second, 1),
        "losses": [None if np.isnan(mean) else round(mean, 4) for mean in means],
    }


def accuracy_table(runs: TunedRuns, arms: Mapping[str, Arm]) -> str:
    """Returns test top-1 and what was tuned, in Markdown."""
    rows = []
    for arm in arms:
        for batch_size, top1 in runs.top1(arm).items():
            rate, clipping = runs.tuned(arm, batch_size)
            edge = "; at the edge" if runs.is_at_edge(arm, batch_size) else ""
            shown = intervals.mean(top1).text(".1%")
            rows.append((arm, batch_size, f"{rate:g}", f"{clipping or 'none'}{edge}", shown))
    seeds = len(next(iter(runs.top1(next(iter(arms))).values())))
    return results.table(
        f"Test top-1: mean with its 95% bootstrap interval; seeds: {seeds}. A run that diverged "
        "counts as 0. The rate is for a batch of 256. A pair at the edge has neighbours that were "
        "not tried.",
        ("arm", "batch size", "learning rate", "threshold", "top-1"),
        rows,
    )


def accuracy_figure(runs: TunedRuns, arms: Mapping[str, Arm], title: str) -> Figure:
    """Draws test top-1 by batch size: means over the seeds with their intervals."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, arm in arms.items():
        top1 = runs.top1(name)
        found = np.array([intervals.mean(values) for values in top1.values()])
        means, *ends = 100 * found.T
        bars = np.nan_to_num(np.abs(ends - means))  # One seed has no interval.
        style = "o--" if any(arm.clippings) else "o-"
        axes.errorbar(list(top1), means, bars, fmt=style, capsize=3, color=arm.color, label=name)
    axes.set_xscale("log", base=2)
    sizes = sorted({row["batch_size"] for row in runs.final})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="batch size", ylabel="test top-1, %", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    return figure
