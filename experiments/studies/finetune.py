"""Tests the claim that normalizer-free networks fine-tune better than batch-normalized ones.

The claim is from NFNets (Brock et al. 2021b, arXiv:2102.06171, section 5.2, table 4): pretrained on
many images, they gain more on ImageNet than their batch-normalized twins.

    python -m experiments.studies.finetune --budget=cpu --data_dir=TFDS_DIR

Design: a small NFNet and its twin learn half of the classes of CIFAR-10. The twin has batch
normalization in place of AGC, standardized kernels and planned variances. Both then learn the other
half from a few images of each class, for the same number of steps: all layers of the pretrained
network, its classifier alone, or a new network from scratch. Each seed has its own pretraining and
its own images. Learning rates are tuned on held-out training images; the runs with the tuned rates
are tested once. The images are written as folders of PNG files and read with ``data.name=folder``,
as ``--config=finetune`` reads a user's. Without ``--data_dir`` the classes are those of the
embedded digits.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.sources import Source, fetch, open_split
from nfnets_jax.training import loop, recipes
from nfnets_jax.training.divergence import Diverged

from . import command, grid, images, intervals, results


class Arm(NamedTuple):
    """A network.

    Attributes:
      model: a registered name.
      clipping: threshold of AGC; 0 for none.
      color: in pictures.
    """

    model: str
    clipping: float
    color: str


class Budget(NamedTuple):
    """The size of the study.

    Attributes:
      shape: settings of both networks.
      steps: of pretraining on the first half of the classes.
      few_steps: of each run on the other half.
      examples: training images of each class of the other half.
      tests: images of each class that a run is tested on.
      rates: learning rates to tune from, for a batch of 256.
      seeds: runs of each network in each way.
    """

    shape: Mapping[str, Any]
    steps: int
    few_steps: int
    examples: int
    tests: int
    rates: tuple[float, ...]
    seeds: int


BUDGETS = {
    "smoke": Budget(
        {"width": (32,), "depth": (1,), "strides": (1,), "stem": ((16, 2),), "group_size": 16},
        steps=60,
        few_steps=20,
        examples=20,
        tests=20,
        rates=(0.4,),
        seeds=1,
    ),
    "cpu": Budget(
        {"stem": ((32, 2),)},
        steps=1200,
        few_steps=150,
        examples=50,
        tests=300,
        rates=(0.05, 0.1, 0.2, 0.4, 0.8),
        seeds=5,
    ),
    "gpu": Budget(
        {},
        steps=8000,
        few_steps=600,
        examples=50,
        tests=1000,
        rates=(0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
        seeds=5,
    ),
}
FREE, NORMALIZED = "normalizer-free, AGC", "batch norm"
# The threshold suits the batch: docs/studies/batch_scaling.
ARMS: Mapping[str, Arm] = {
    FREE: Arm("nfnet_micro", 0.08, "C1"),
    NORMALIZED: Arm("nfnet_micro_bn", 0.0, "C7"),
}
SCRATCH, ALL_LAYERS, CLASSIFIER = WAYS = ("from scratch", "all layers", "classifier alone")
_PRETRAINING = "pretraining"
_BATCH = 64


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Pretrains both networks, then has each learn the other classes in each way."""
    design = BUDGETS[budget]
    data = images.name(data_dir)
    conditions = {"budget": budget, "data": data, "batch": _BATCH, **design._asdict()}
    conditions = json.loads(json.dumps(conditions))  # Tuples as they are read again.

    @functools.cache
    def folder() -> Path:
        write_images(workdir / "images", data, data_dir, design)
        return workdir / "images"

    def run(settings: grid.Settings) -> dict[str, float]:
        config = _config(design, folder(), settings)
        if settings["way"] in (ALL_LAYERS, CLASSIFIER):
            start = pretraining(settings["arm"], settings["seed"])
            config.init.weights = str(_workdir(workdir, start))
        try:
            test = loop.train(config, _workdir(workdir, settings))["test"]
        except Diverged as diverged:
            print(diverged, flush=True)
            return {"top1": 0.0}
        return {"top1": test["top1"]}

    def tune(ways: Sequence[str], part: str) -> list[grid.Row]:
        return grid.run_grid(
            workdir,
            conditions,
            [
                _settings(arm, way, part, rate, 0)
                for arm in ARMS
                for way in ways
                for rate in design.rates
            ],
            run,
        )

    def pretraining(arm: str, seed: int) -> grid.Settings:
        return _settings(arm, _PRETRAINING, "first", best_rate(tuning, arm, _PRETRAINING), seed)

    tuning = tune([_PRETRAINING], "first")
    pretrained = [pretraining(arm, seed) for arm in ARMS for seed in range(design.seeds)]
    pretrained_rows = grid.run_grid(workdir, conditions, pretrained, run)
    tuning += tune(WAYS, "tune")
    final = grid.run_grid(
        workdir,
        conditions,
        [
            _settings(arm, way, f"few-{seed}", best_rate(tuning, arm, way), seed)
            for arm in ARMS
            for way in WAYS
            for seed in range(design.seeds)
        ],
        run,
    )
    top1 = {
        (arm, way): [row["top1"] for row in rows if (row["arm"], row["way"]) == (arm, way)]
        for way, rows in {_PRETRAINING: pretrained_rows, **dict.fromkeys(WAYS, final)}.items()
        for arm in ARMS
    }
    return results.Results(
        conditions,
        [*tuning, *pretrained_rows, *final],
        [_accuracy_table(top1, tuning, design), _difference_table(top1)],
        {"accuracy": _draw(top1)},
    )


def best_rate(tuning: Sequence[grid.Row], arm: str, way: str) -> float:
    """Returns the most accurate rate on the held-out images; of equal ones the lowest."""
    rows = [row for row in tuning if (row["arm"], row["way"]) == (arm, way)]
    return max(rows, key=lambda row: (row["top1"], -row["learning_rate"]))["learning_rate"]


def write_images(folder: Path, data: str, data_dir: Path | None, design: Budget) -> None:
    """Writes PNG files of the first half of the classes and of the other half.

    Each of these folders has a folder per class. Training images of the first half are in ``first``
    and ``test-first``; of the other half there are a few in ``few-SEED``, and others to tune on in
    ``tune`` and ``test-tune``. The test images of the other half are in ``test-few``.
    """
    done = folder / "done"
    if done.exists():
        return
    directory = str(data_dir or "")
    train, names = open_split(data, directory, "train")
    test, _ = open_split(data, directory, "test")
    for label, name in enumerate(names):
        divide = _divide_first if label < len(names) // 2 else _divide_other
        for part, (source, indices) in divide(train, test, label, design).items():
            _write(folder / part / name, source, indices)
    done.touch()


# Images of a class: where they are, and which.
_Parts = dict[str, tuple[Source, np.ndarray]]


def _divide_first(train: Source, test: Source, label: int, design: Budget) -> _Parts:
    """Divides a class to pretrain on."""
    del test
    held_out, learned = np.split(_shuffled(train, label, 0), [design.tests])
    return {"first": (train, learned), "test-first": (train, held_out)}


def _divide_other(train: Source, test: Source, label: int, design: Budget) -> _Parts:
    """Divides a class to learn from a few images."""
    count, tests = design.examples, design.tests
    few, held_out, _ = np.split(_shuffled(train, label, design.seeds), [count, count + tests])
    return {
        "tune": (train, few),
        "test-tune": (train, held_out),
        "test-few": (test, _indices(test, label)[:tests]),
        **{
            f"few-{seed}": (train, _shuffled(train, label, seed)[:count])
            for seed in range(design.seeds)
        },
    }


def _shuffled(source: Source, label: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, label)).permutation(_indices(source, label))


def _indices(source: Any, label: int) -> np.ndarray:
    return np.flatnonzero(source.labels == label)


def _write(folder: Path, source: Source, indices: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, record in zip(indices, fetch(source, indices), strict=True):
        pixels = np.asarray(record["image"])[..., ::-1]  # OpenCV writes BGR.
        cv2.imwrite(str(folder / f"{index}.png"), pixels)


def _settings(arm: str, way: str, part: str, rate: float, seed: int) -> grid.Settings:
    return {"arm": arm, "way": way, "images": part, "learning_rate": rate, "seed": seed}


def _config(design: Budget, folder: Path, settings: grid.Settings) -> ConfigDict:
    """Returns the training of a run, but for what it starts from."""
    arm, part = ARMS[settings["arm"]], settings["images"]
    size = Picture(next(folder.glob("first/*/*.png")), "an image").pixels().shape[0]
    config = recipes.small_images(arm.model, "folder", size)
    config.data.dir = str(folder / part)
    config.data.test_dir = str(folder / f"test-{part.partition('-')[0]}")
    config.data.padding = size // 8
    is_pretraining = settings["way"] == _PRETRAINING
    config.num_steps = design.steps if is_pretraining else design.few_steps
    config.update({"batch_size": _BATCH, "num_devices": 1, "seed": settings["seed"]})
    config.update({"ema_decay": 0.0, "look_every": 0, "log_every": max(1, config.num_steps // 5)})
    config.init.new_classifier = not is_pretraining
    config.optimizer.update(
        {
            "base_learning_rate": settings["learning_rate"],
            "warmup_fraction": 0.1,
            "weight_decay": 5e-4,
            "clipping": arm.clipping,
            "layer_decay": 0.0 if settings["way"] == CLASSIFIER else 1.0,
        }
    )
    with config.unlocked():
        config.model.update(design.shape)
    return config


def _workdir(workdir: Path, settings: grid.Settings) -> Path:
    return workdir / "training" / grid.file_name(settings).replace(" ", "_")


def _accuracy_table(
    top1: Mapping[tuple[str, str], Sequence[float]], tuning: Sequence[grid.Row], design: Budget
) -> str:
    rows = []
    for (arm, way), values in top1.items():
        rate = best_rate(tuning, arm, way)
        is_edge = len(design.rates) > 1 and rate in (design.rates[0], design.rates[-1])
        shown = f"{rate:g}{', at an edge' if is_edge else ''}"
        rows.append((way, arm, shown, intervals.mean(values).text(".1%")))
    return results.table(
        "Top-1: mean with its 95% bootstrap interval over the seeds, of pretraining on held-out "
        "images of the first half of the classes, else on test images of the other half. Rates are "
        "for a batch of 256; one at an edge of the grid may not be the best. A run that diverged "
        "counts as 0.",
        ("way", "network", "learning rate", "top-1"),
        rows,
    )


def _gain(
    top1: Mapping[tuple[str, str], Sequence[float]], way: str, base: str
) -> intervals.Interval:
    """Returns how much more a way gains over another with the normalizer-free network."""
    arms = [top1[FREE, way], top1[FREE, base], top1[NORMALIZED, way], top1[NORMALIZED, base]]
    return intervals.contrast(arms, [1, -1, -1, 1])


def _difference_table(top1: Mapping[tuple[str, str], Sequence[float]]) -> str:
    rows = [
        (way, intervals.difference(top1[FREE, way], top1[NORMALIZED, way]).points())
        for way in (_PRETRAINING, *WAYS)
    ]
    rows += [
        (f"{way}, less {SCRATCH}", _gain(top1, way, SCRATCH).points())
        for way in (ALL_LAYERS, CLASSIFIER)
    ]
    return results.table(
        "The normalizer-free network less its twin: differences of top-1 in points, with their 95% "
        "bootstrap intervals.",
        ("way", "points"),
        rows,
    )


def _draw(top1: Mapping[tuple[str, str], Sequence[float]]) -> Figure:
    """Draws top-1 by way: means with their intervals."""
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(WAYS))
    for shift, (name, arm) in zip((-0.08, 0.08), ARMS.items(), strict=True):
        found = np.array([intervals.mean(top1[name, way]) for way in WAYS])
        means, *ends = 100 * found.T
        bars = np.nan_to_num(np.abs(ends - means))  # One seed has no interval.
        axes.errorbar(places + shift, means, bars, fmt="o", capsize=3, color=arm.color, label=name)
    gain = intervals.difference(top1[FREE, ALL_LAYERS], top1[NORMALIZED, ALL_LAYERS])
    axes.set_xticks(places, WAYS)
    axes.set(
        ylabel="test top-1, %",
        title=f"Fine-tuned, normalizer-free less batch norm: {gain.points()} points",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    command.run("finetune", __doc__, study)
