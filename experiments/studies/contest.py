"""Networks that compete on small images: at each batch size with a learning rate chosen for them.

The learning rate is chosen by images that are held out of the training ones; then all of them are
learned from, once a seed, and the test images are looked at once a run.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import recipes
from experiments.studies import grid
from nfnets_jax.atomic import atomic_write
from nfnets_jax.data.sources import open_dataset
from nfnets_jax.training import loop
from nfnets_jax.training.divergence import Diverged


class Contender(NamedTuple):
    """Who competes.

    Attributes:
      model: by its name.
      color: in pictures.
      clipping: threshold of AGC; 0 is none.
      overrides: settings of the model to replace.
    """

    model: str
    color: str
    clipping: float = 0.0
    overrides: Mapping[str, Any] = {}


class Effort(NamedTuple):
    """How much is done.

    Attributes:
      epochs: of each run.
      batch_sizes: examples a step.
      learning_rates: for a batch of 256, in proportion to which the batch has its own; where the
        best of them, in ascending order, is the first or the last, more follow on that side.
      seeds: runs with the learning rate that was chosen.
      image_size: side of CIFAR-10's images as they are learned from, in pixels.
    """

    epochs: float
    batch_sizes: tuple[int, ...]
    learning_rates: tuple[float, ...]
    seeds: int
    image_size: int = 32


class Results(NamedTuple):
    """Rows of runs: what they trained, ``top1``, ``images_per_second``; None where they diverged.

    ``tries`` were tested on images held out, ``finals`` on the test images; ``common`` holds of
    all.
    """

    tries: list[grid.Row]
    finals: list[grid.Row]
    common: grid.Settings

    def top1(self, contender: str) -> dict[int, list[float]]:
        """On the test images, of each seed, by the batch size; 0 where the run diverged."""
        found: dict[int, list[float]] = {}
        for row in self.finals:
            if row["contender"] == contender:
                found.setdefault(row["batch_size"], []).append(row["top1"] or 0.0)
        return found

    def learning_rate(self, contender: str, batch_size: int) -> float:
        """The one that was chosen."""
        return chosen(self.tries, {"contender": contender, "batch_size": batch_size})


# Batches are normalized by so many images at most, as where each part is on a device of its own.
NORMALIZED_IMAGES = 64
# Beyond those of the effort, at a point where the best is the lowest or the highest yet.
_MORE_LEARNING_RATES = 3
_DIGITS_SIZE = 8


def compete(
    workdir: Path,
    budget: str,
    contenders: Mapping[str, Contender],
    effort: Effort,
    data_dir: Path | None,
) -> Results:
    """Runs what has not been run yet, on CIFAR-10; without ``data_dir`` on the embedded digits.

    Raises:
      InputError: there is no CIFAR-10, or the workdir has another study.
    """
    data = "tfds:cifar10" if data_dir else "digits"
    images = len(open_dataset(data, str(data_dir or "")).train)
    side = effort.image_size if data_dir else _DIGITS_SIZE
    common = {
        "budget": budget,
        "data": data,
        "image_size": side,
        "epochs": effort.epochs,
        "normalized_images": NORMALIZED_IMAGES,
    }

    def run(member: grid.Settings) -> dict[str, float]:
        config = _config(contenders[member["contender"]], member, data, side)
        config.data.dir = str(data_dir or "")
        learned = images - config.data.holdout
        config.num_steps = max(1, round(effort.epochs * learned / config.batch_size))
        config.log_every = config.num_steps
        try:
            summary = loop.train(config, workdir / "training" / grid.file_name(member))
        except Diverged as diverged:
            print(diverged, flush=True)
            return {"top1": float("nan"), "images_per_second": float("nan")}
        finally:
            jax.clear_caches()  # The programs of dozens of runs would fill the memory.
        speed = summary["train"]["images_per_second"]
        return {"top1": summary["test"]["top1"], "images_per_second": speed}

    points = [
        {"contender": name, "batch_size": size}
        for name in contenders
        for size in effort.batch_sizes
    ]
    tries = [
        {**point, "learning_rate": rate, "held_out": images // 10, "seed": 0}
        for point in points
        for rate in effort.learning_rates
    ]
    tried = grid.run_grid(workdir, common, tries, run)
    for _ in range(_MORE_LEARNING_RATES):
        rates = [(point, rate) for point in points if (rate := beyond(tried, point))]
        if not rates:
            break
        tries += [{**tries[0], **point, "learning_rate": rate} for point, rate in rates]
        tried = grid.run_grid(workdir, common, tries, run)
    finals = [
        {**point, "learning_rate": chosen(tried, point), "held_out": 0, "seed": seed}
        for point in points
        for seed in range(effort.seeds)
    ]
    return Results(tried, grid.run_grid(workdir, common, finals, run), common)


def chosen(tries: Sequence[grid.Row], point: grid.Settings) -> float:
    """The learning rate of the run that was best at a point; the lowest, where all diverged."""
    runs = [row for row in tries if point.items() <= row.items()]
    best = max(runs, key=lambda row: (row["top1"] or 0.0, -row["learning_rate"]))
    return best["learning_rate"]


def beyond(tries: Sequence[grid.Row], point: grid.Settings) -> float | None:
    """The learning rate to try next at a point, as far from the best as that is from the others.

    None where the best lies between others, or is the only one.
    """
    best = chosen(tries, point)
    rates = sorted(row["learning_rate"] for row in tries if point.items() <= row.items())
    if len(rates) == 1 or rates[0] < best < rates[-1]:
        return None
    neighbour = rates[1] if best == rates[0] else rates[-2]
    return float(f"{best * best / neighbour:.4g}")


def epochs(effort: Effort) -> str:
    """In words."""
    return "one epoch" if effort.epochs == 1 else f"{effort.epochs:g} epochs"


def explanation(effort: Effort, tries: int) -> str:
    """What a report says of how its figures came about."""
    return (
        f"Each run learned for {epochs(effort)}. The learning rates were chosen by one run "
        f"each on images held out of the training ones, {tries} in all; a grid whose best was at "
        f"an edge went on there, up to {_MORE_LEARNING_RATES} times. {effort.seeds} seeds of the "
        "chosen follow, on all training images. What diverged counts as 0."
    )


def table(results: Results, contenders: Mapping[str, Contender]) -> str:
    """Accuracies and learning rates in Markdown."""
    rows = [
        (
            name,
            size,
            results.learning_rate(name, size),
            f"{statistics.mean(values):.1%}",
            f"{min(values):.1%}",
            f"{max(values):.1%}",
        )
        for name in contenders
        for size, values in results.top1(name).items()
    ]
    header = ("network", "batch size", "learning rate at 256", "test top-1", "lowest", "highest")
    return grid.markdown_table(header, rows)


def draw(path: Path, results: Results, contenders: Mapping[str, Contender]) -> None:
    """Accuracy against the batch size: means, and bars from the lowest to the highest."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, contender in contenders.items():
        top1 = results.top1(name)
        means = [statistics.mean(values) for values in top1.values()]
        spread = [
            [mean - min(values) for mean, values in zip(means, top1.values(), strict=True)],
            [max(values) - mean for mean, values in zip(means, top1.values(), strict=True)],
        ]
        line = "--" if contender.clipping else "-"
        axes.errorbar(
            list(top1), means, spread, fmt=f"o{line}", capsize=3, color=contender.color, label=name
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="batch size", ylabel="test top-1", title="equal epochs; mean and extremes")
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def _config(contender: Contender, member: grid.Settings, data: str, side: int) -> ConfigDict:
    digits, size = data == "digits", member["batch_size"]
    config = recipes.small_images(contender.model, data, side)
    with config.unlocked():
        config.model.update(contender.overrides)
    config.data.holdout = member["held_out"]
    config.data.padding = side // 8
    config.data.flip = not digits  # A mirrored digit is another one.
    config.batch_size = size
    config.micro_batch_size = NORMALIZED_IMAGES if size > NORMALIZED_IMAGES else 0
    config.num_devices = 1
    config.seed = member["seed"]
    config.ema_decay = 0.0
    config.optimizer.update(
        {
            "base_learning_rate": member["learning_rate"],
            "warmup_fraction": 0.1,
            "weight_decay": 5e-4,
            "clipping": contender.clipping,
        }
    )
    config.look_every = 0
    return config
