"""Tests the claim that a pretrained NFNet learns new classes better than one from scratch.

NFNets (Brock et al. 2021b, arXiv:2102.06171, section 5.2) claim that they are good networks to
start from: pretrained on many images, they gain more from it than batch-normalized ones.

    python -m experiments.studies.finetune --budget=cpu --data_dir=TFDS_DIR

Design: a small NFNet learns half of the classes of CIFAR-10. From a few images of each class it
then learns the other half, in ways that differ in the starting point and in which layers learn, all
for the same number of steps. The images are written as folders of PNG files and read with
``data.name=folder``, as ``--config=finetune`` reads a user's. Batch-normalized networks are not
compared. Without ``--data_dir`` the classes are those of the embedded digits.
"""

import functools
import json
import statistics
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

from . import command, grid, results


class Budget(NamedTuple):
    """The size of the study.

    Attributes:
      model: overrides of ``nfnet_micro``.
      steps: of pretraining on the first half of the classes.
      tuning_steps: of each run on the other half.
      examples: training images of each class of the other half.
      tests: test images of each class.
      seeds: runs of each way, each with other training images.
    """

    model: Mapping[str, Any]
    steps: int
    tuning_steps: int
    examples: int
    tests: int
    seeds: int


BUDGETS = {
    "smoke": Budget(
        {"width": (32,), "depth": (1,), "strides": (1,), "stem": ((16, 2),), "group_size": 16},
        steps=60,
        tuning_steps=20,
        examples=20,
        tests=20,
        seeds=1,
    ),
    "cpu": Budget(
        {"stem": ((32, 2),)}, steps=1200, tuning_steps=150, examples=50, tests=300, seeds=2
    ),
    "gpu": Budget({}, steps=8000, tuning_steps=600, examples=50, tests=1000, seeds=5),
}
_BATCH = 64
_PRETRAINING_RATE = 0.4
_SCRATCH = "from scratch"
# Pretrained layers need a lower rate than new ones.
WAYS: Mapping[str, Mapping[str, float]] = {
    _SCRATCH: {"base_learning_rate": 0.4},
    "all layers": {"base_learning_rate": 0.1},
    "layer-wise": {"base_learning_rate": 0.2, "layer_decay": 0.7},
    "classifier alone": {"base_learning_rate": 0.4, "layer_decay": 0.0},
    "all layers, SAM": {"base_learning_rate": 0.1, "sam_rho": 0.05},
}


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Pretrains once, then learns the other classes in each way with each seed."""
    design = BUDGETS[budget]
    data = "tfds:cifar10" if data_dir else "digits"
    conditions = {"budget": budget, "data": data, "batch": _BATCH, **design._asdict()}
    conditions["model"] = json.dumps(conditions["model"])

    @functools.cache
    def images() -> Path:
        write_images(workdir / "images", data, data_dir, design)
        return workdir / "images"

    @functools.cache
    def pretrained() -> Path:
        config = _config(design, images(), "first", design.steps, seed=0)
        config.optimizer.base_learning_rate = _PRETRAINING_RATE
        loop.train(config, workdir / "pretrained")
        return workdir / "pretrained"

    def run(settings: grid.Settings) -> dict[str, float]:
        way, seed = settings["way"], settings["seed"]
        config = _config(design, images(), f"few-{seed}", design.tuning_steps, seed)
        start = "" if way == _SCRATCH else str(pretrained())
        config.init.update({"weights": start, "new_classifier": True})
        config.optimizer.update(WAYS[way])
        config.eval_every = max(1, design.tuning_steps // 3)
        summary = loop.train(config, _folder(workdir, settings))
        return {"top1": summary["test"]["top1"], "loss": summary["test"]["loss"]}

    members = [{"way": way, "seed": seed} for seed in range(design.seeds) for way in WAYS]
    rows = grid.run_grid(workdir, conditions, members, run)
    summary = json.loads((workdir / "pretrained" / "summary.json").read_text("utf-8"))
    conditions["pretrained_top1"] = summary["test"]["top1"]
    curves = {way: _mean_curve(workdir, way, design.seeds) for way in WAYS}
    return results.Results(conditions, rows, [_table(rows)], {"curves": _draw(curves)})


def write_images(folder: Path, data: str, data_dir: Path | None, design: Budget) -> None:
    """Writes PNG files of the first half of the classes and of the other half.

    Each of these folders has a folder per class: ``first`` holds all training images of the first
    half, ``few-SEED`` the few of the other half, ``test-first`` and ``test-few`` test images.
    """
    done = folder / "done"
    if done.exists():
        return
    directory = str(data_dir or "")
    train, names = open_split(data, directory, "train")
    test, _ = open_split(data, directory, "test")
    half = len(names) // 2
    for label, name in enumerate(names):
        part = "first" if label < half else "few"
        _write(folder / f"test-{part}" / name, test, _indices(test, label)[: design.tests])
        examples = _indices(train, label)
        if part == "first":
            _write(folder / "first" / name, train, examples)
            continue
        for seed in range(design.seeds):
            shuffled = np.random.default_rng((seed, label)).permutation(examples)
            _write(folder / f"few-{seed}" / name, train, shuffled[: design.examples])
    done.touch()


def _indices(source: Any, label: int) -> np.ndarray:
    return np.flatnonzero(source.labels == label)


def _write(folder: Path, source: Source, indices: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, record in zip(indices, fetch(source, indices), strict=True):
        pixels = np.asarray(record["image"])[..., ::-1]  # OpenCV writes BGR.
        cv2.imwrite(str(folder / f"{index}.png"), pixels)


def _config(design: Budget, images: Path, train: str, steps: int, seed: int) -> ConfigDict:
    """Returns training on the folder ``train``, tested on other images of the same classes."""
    size = Picture(next(images.glob("first/*/*.png")), "an image").pixels().shape[0]
    config = recipes.small_images("nfnet_micro", "folder", size)
    config.data.dir = str(images / train)
    config.data.test_dir = str(images / f"test-{train.split('-')[0]}")
    config.data.padding = size // 8
    config.batch_size = _BATCH
    config.num_devices = 1
    config.num_steps = steps
    config.seed = seed
    config.ema_decay = 0.98
    config.optimizer.warmup_fraction = 0.1
    config.look_every = 0
    config.log_every = max(1, steps // 5)
    with config.unlocked():
        config.model.update(design.model)
    return config


def _folder(workdir: Path, settings: grid.Settings) -> Path:
    return workdir / "tuned" / f"{settings['way'].replace(' ', '_')}-{settings['seed']}"


def _mean_curve(workdir: Path, way: str, seeds: int) -> dict[int, float]:
    """Returns test top-1 by step, the mean over the seeds."""
    top1: dict[int, list[float]] = {}
    for seed in range(seeds):
        metrics = _folder(workdir, {"way": way, "seed": seed}) / "metrics.jsonl"
        for row in map(json.loads, metrics.read_text("utf-8").splitlines()):
            if row["split"] == "test":
                top1.setdefault(row["step"], []).append(row["top1"])
    return {step: statistics.mean(values) for step, values in top1.items()}


def _table(rows: Sequence[grid.Row]) -> str:
    top1 = {way: [row["top1"] for row in rows if row["way"] == way] for way in WAYS}
    return results.table(
        "Test top-1 on the other half of the classes: mean, lowest and highest over the seeds.",
        ("way", "learning rate", "layer decay", "mean", "lowest", "highest"),
        [
            (
                way,
                WAYS[way]["base_learning_rate"],
                WAYS[way].get("layer_decay", 1.0),
                f"{statistics.mean(values):.1%}",
                f"{min(values):.1%}",
                f"{max(values):.1%}",
            )
            for way, values in top1.items()
        ],
    )


def _draw(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for way, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=way)
    axes.set(xlabel="step", ylabel="test top-1, mean of seeds", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    command.run("finetune", __doc__, study)
