"""Trains small networks at several batch sizes, each with a learning rate tuned for it.

The learning rate of each network and batch size is tuned on a tenth of the training images, which
those runs do not learn from, one run per rate. The best rate is then trained on all training
images, once per seed, and each of these runs is evaluated once on the test images. All runs take
the same number of epochs. The learning rate of a batch is proportional to its size.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from nfnets_jax.data.sources import open_dataset
from nfnets_jax.training import loop, recipes
from nfnets_jax.training.divergence import Diverged

from . import grid, results

# Batch normalization takes its statistics from at most this many images, as on several devices.
_MICRO_BATCH = 64
# Rates added, one at a time, while the best rate is at an edge of the grid.
_ADDED_RATES = 3
_DIGITS_SIZE = 8


class Network(NamedTuple):
    """A network to train.

    Attributes:
      model: a registered name.
      color: of its line in pictures.
      clipping: threshold of AGC; 0 for none.
      overrides: settings of the model that replace its own.
    """

    model: str
    color: str
    clipping: float = 0.0
    overrides: Mapping[str, Any] = {}


class Budget(NamedTuple):
    """The size of a study.

    Attributes:
      epochs: length of each run.
      batch_sizes: images per step.
      learning_rates: grid for a batch of 256, in ascending order, extended while the best
        rate is at an edge; a single rate is used as it is.
      seeds: runs with the tuned rate.
      image_size: side in pixels to which CIFAR-10's images are resized.
    """

    epochs: float
    batch_sizes: tuple[int, ...]
    learning_rates: tuple[float, ...]
    seeds: int
    image_size: int = 32


class TunedRuns(NamedTuple):
    """All runs; their ``top1`` and ``images_per_second`` are None where training diverged.

    Attributes:
      tuning: runs evaluated on held-out training images, one per learning rate; none for one rate.
      final: runs evaluated on the test images, one per seed.
      conditions: settings shared by all runs.
    """

    tuning: list[grid.Row]
    final: list[grid.Row]
    conditions: grid.Settings

    def top1(self, network: str) -> dict[int, list[float]]:
        """Returns test top-1 of each seed by batch size; 0 where training diverged."""
        found: dict[int, list[float]] = {}
        for row in self.final:
            if row["network"] == network:
                found.setdefault(row["batch_size"], []).append(row["top1"] or 0.0)
        return found

    def learning_rate(self, network: str, batch_size: int) -> float:
        """Returns the tuned learning rate, for a batch of 256."""
        point = {"network": network, "batch_size": batch_size}
        return next(row["learning_rate"] for row in self.final if point.items() <= row.items())


def train_tuned(
    workdir: Path,
    budget_name: str,
    networks: Mapping[str, Network],
    budget: Budget,
    data_dir: Path | None,
) -> TunedRuns:
    """Tunes and trains on CIFAR-10, or on the embedded digits without ``data_dir``.

    Runs that the working directory already holds are not repeated.

    Raises:
      InputError: CIFAR-10 is not in ``data_dir``, or the directory holds another study.
    """
    data = "tfds:cifar10" if data_dir else "digits"
    size = budget.image_size if data_dir else _DIGITS_SIZE
    images = len(open_dataset(data, str(data_dir or "")).train)
    conditions = {
        "budget": budget_name,
        "data": data,
        "image_size": size,
        "epochs": budget.epochs,
        "micro_batch": _MICRO_BATCH,
    }

    def run(settings: grid.Settings) -> dict[str, float]:
        config = _config(networks[settings["network"]], settings, data, size)
        config.data.dir = str(data_dir or "")
        steps = budget.epochs * (images - config.data.holdout) / config.batch_size
        config.num_steps = config.log_every = max(1, round(steps))
        try:
            summary = loop.train(config, workdir / "training" / grid.file_name(settings))
        except Diverged as diverged:
            print(diverged, flush=True)
            return {"top1": float("nan"), "images_per_second": float("nan")}
        finally:
            jax.clear_caches()  # The compiled programs of dozens of runs would fill the memory.
        speed = summary["train"]["images_per_second"]
        return {"top1": summary["test"]["top1"], "images_per_second": speed}

    def run_all(members: Sequence[grid.Settings]) -> list[grid.Row]:
        return grid.run_grid(workdir, conditions, members, run)

    points = [
        {"network": name, "batch_size": batch_size}
        for name in networks
        for batch_size in budget.batch_sizes
    ]
    first, *others = budget.learning_rates
    tuning = _tune(points, budget.learning_rates, images // 10, run_all) if others else []
    members = [
        {
            **point,
            "learning_rate": best_learning_rate(tuning, point) if tuning else first,
            "held_out": 0,
            "seed": seed,
        }
        for point in points
        for seed in range(budget.seeds)
    ]
    return TunedRuns(tuning, run_all(members), conditions)


def _tune(
    points: Sequence[grid.Settings],
    learning_rates: Sequence[float],
    held_out: int,
    run_all: Callable[[Sequence[grid.Settings]], list[grid.Row]],
) -> list[grid.Row]:
    """Runs the grid of learning rates at all points, extended while a best rate is at an edge."""

    def members(rates: Sequence[tuple[grid.Settings, float]]) -> list[grid.Settings]:
        fixed = {"held_out": held_out, "seed": 0}
        return [{**point, "learning_rate": rate, **fixed} for point, rate in rates]

    rates = [(point, rate) for point in points for rate in learning_rates]
    tuning = run_all(members(rates))
    for _ in range(_ADDED_RATES):
        added = [(p, rate) for p in points if (rate := next_learning_rate(tuning, p))]
        if not added:
            break
        rates += added
        tuning = run_all(members(rates))
    return tuning


def best_learning_rate(tuning: Sequence[grid.Row], point: grid.Settings) -> float:
    """Returns the rate of the most accurate run at a point; the lowest rate if all diverged."""
    runs = [row for row in tuning if point.items() <= row.items()]
    best = max(runs, key=lambda row: (row["top1"] or 0.0, -row["learning_rate"]))
    return best["learning_rate"]


def next_learning_rate(tuning: Sequence[grid.Row], point: grid.Settings) -> float | None:
    """Returns the rate that extends the grid at a point beyond its best rate.

    The grid grows by the ratio of the two rates at that edge. Returns None if the best rate is not
    at an edge.
    """
    best = best_learning_rate(tuning, point)
    rates = sorted(row["learning_rate"] for row in tuning if point.items() <= row.items())
    if rates[0] < best < rates[-1]:
        return None
    neighbour = rates[1] if best == rates[0] else rates[-2]
    return float(f"{best * best / neighbour:.4g}")


def accuracy_table(
    runs: TunedRuns, networks: Mapping[str, Network], figure: str = "Test top-1"
) -> str:
    """Returns test top-1, captioned ``figure``, and the tuned learning rates in Markdown."""
    rows = [
        (
            name,
            batch_size,
            runs.learning_rate(name, batch_size),
            f"{statistics.mean(top1):.1%}",
            f"{min(top1):.1%}",
            f"{max(top1):.1%}",
            len(top1),
        )
        for name in networks
        for batch_size, top1 in runs.top1(name).items()
    ]
    return results.table(
        f"{figure}: mean, lowest and highest over the seeds; a run that diverged counts as 0.",
        ("network", "batch size", "learning rate at 256", "mean", "lowest", "highest", "seeds"),
        rows,
    )


def accuracy_figure(runs: TunedRuns, networks: Mapping[str, Network]) -> Figure:
    """Draws test top-1 by batch size: the mean over seeds, with bars to lowest and highest."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, network in networks.items():
        top1 = runs.top1(name)
        means = [statistics.mean(values) for values in top1.values()]
        below = [mean - min(values) for mean, values in zip(means, top1.values(), strict=True)]
        above = [max(values) - mean for mean, values in zip(means, top1.values(), strict=True)]
        style = "o--" if network.clipping else "o-"
        axes.errorbar(
            list(top1),
            means,
            (below, above),
            fmt=style,
            capsize=3,
            color=network.color,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="batch size", ylabel="test top-1", title="equal epochs; mean and range of seeds"
    )
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _config(network: Network, settings: grid.Settings, data: str, size: int) -> ConfigDict:
    batch_size = settings["batch_size"]
    config = recipes.small_images(network.model, data, size)
    with config.unlocked():
        config.model.update(network.overrides)
    config.data.holdout = settings["held_out"]
    config.data.padding = size // 8
    config.data.flip = data != "digits"  # A mirrored digit is another one.
    config.batch_size = batch_size
    config.micro_batch_size = _MICRO_BATCH if batch_size > _MICRO_BATCH else 0
    config.num_devices = 1
    config.seed = settings["seed"]
    config.ema_decay = 0.0
    config.optimizer.update(
        {
            "base_learning_rate": settings["learning_rate"],
            "warmup_fraction": 0.1,
            "weight_decay": 5e-4,
            "clipping": network.clipping,
        }
    )
    config.look_every = 0
    return config
