"""Fine-tuning a small NFNet to classes it has not seen, against training from scratch.

    python -m experiments.studies.finetune --budget=cpu --data_dir=TFDS_DIR

A network learns half of CIFAR-10's classes (of the embedded digits, without ``--data_dir``). Of the
other half it then gets a few images, and learns them in ways that differ in what they start from
and which layers learn; all take the same number of steps. The images are written as folders of
PNG files, so that this is what ``--config=finetune`` does to anyone's images.
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

from experiments import recipes
from experiments.studies import grid
from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.sources import Source, fetch, open_split
from nfnets_jax.training import loop


class Budget(NamedTuple):
    """How much is done.

    Attributes:
      model: what replaces the settings of ``nfnet_micro``.
      steps, tuning_steps: of learning the first classes, and the others.
      examples: of each of the other classes.
      tests: of each class, images to test on.
      seeds: how often all is done, with other images to learn from.
    """

    model: Mapping[str, Any]
    steps: int
    tuning_steps: int
    examples: int
    tests: int
    seeds: int


# Half the resolution to begin with.
_FAST = {"stem": ((32, 2),)}
BUDGETS = {
    "smoke": Budget(
        {"width": (32,), "depth": (1,), "strides": (1,), "stem": ((16, 2),), "group_size": 16},
        steps=60,
        tuning_steps=20,
        examples=20,
        tests=20,
        seeds=1,
    ),
    "cpu": Budget(_FAST, steps=1200, tuning_steps=150, examples=50, tests=300, seeds=2),
    "gpu": Budget({}, steps=8000, tuning_steps=600, examples=50, tests=1000, seeds=5),
}
_BATCH = 64
# What has learned needs a lower rate; a new classifier on it, alone, has nothing to forget.
WAYS: Mapping[str, Mapping[str, float]] = {
    "from scratch": {"base_learning_rate": 0.4},
    "all layers": {"base_learning_rate": 0.1},
    "layer-wise": {"base_learning_rate": 0.2, "layer_decay": 0.7},
    "classifier alone": {"base_learning_rate": 0.4, "layer_decay": 0.0},
    "all layers, SAM": {"base_learning_rate": 0.1, "sam_rho": 0.05},
}


def main() -> None:
    """Runs the study."""
    grid.command(__doc__.splitlines()[0], "finetune", study)


def study(workdir: Path, budget: str, data_dir: Path | None) -> None:
    """Learns the first classes once, and the others in each way; writes the report."""
    settings = BUDGETS[budget]
    data = "tfds:cifar10" if data_dir else "digits"
    common = {"budget": budget, "data": data, "batch": _BATCH, **settings._asdict()}
    common["model"] = json.dumps(common["model"])
    members = [{"way": way, "seed": seed} for seed in range(settings.seeds) for way in WAYS]

    @functools.cache
    def images() -> None:
        write_images(workdir / "images", data, data_dir, settings)

    @functools.cache
    def pretrained() -> Path:
        images()
        config = _config(settings, workdir / "images", "first", settings.steps, seed=0)
        config.optimizer.base_learning_rate = 0.4
        loop.train(config, workdir / "pretrained")
        return workdir / "pretrained"

    def run(member: Mapping[str, Any]) -> dict[str, float]:
        way, seed = member["way"], member["seed"]
        start = "" if way == "from scratch" else str(pretrained())
        images()
        train = f"few-{seed}"
        config = _config(settings, workdir / "images", train, settings.tuning_steps, seed)
        config.init.update({"weights": start, "new_classifier": True})
        config.optimizer.update(WAYS[way])
        config.eval_every = max(1, settings.tuning_steps // 3)
        summary = loop.train(config, _folder(workdir, member))
        return {"top1": summary["test"]["top1"], "loss": summary["test"]["loss"]}

    rows = grid.run_grid(workdir, common, members, run)
    first = json.loads((workdir / "pretrained" / "summary.json").read_text())["test"]["top1"]
    _draw(workdir, members)
    grid.write_report(workdir, "Fine-tuning", rows, _report(rows, settings, data, first), common)


def _folder(workdir: Path, member: Mapping[str, Any]) -> Path:
    return workdir / "tuned" / f"{member['way'].replace(' ', '_')}-{member['seed']}"


def _config(settings: Budget, images: Path, train: str, steps: int, seed: int) -> ConfigDict:
    """Training on the images of a folder, to be tested on those of the same classes."""
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
        config.model.update(settings.model)
    return config


def write_images(folder: Path, data: str, data_dir: Path | None, settings: Budget) -> None:
    """Folders of PNG files, one a class, of the first half of the classes and of the other.

    ``first`` has all images for training, ``few-SEED`` a few of the other classes, ``test-first``
    and ``test-few`` those to test on.
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
        _write(folder / f"test-{part}" / name, test, _of(test, label)[: settings.tests])
        places = _of(train, label)
        if label < half:
            _write(folder / "first" / name, train, places)
            continue
        for seed in range(settings.seeds):
            some = np.random.default_rng((seed, label)).permutation(places)[: settings.examples]
            _write(folder / f"few-{seed}" / name, train, some)
    done.touch()


def _of(source: Any, label: int) -> np.ndarray:
    return np.flatnonzero(source.labels == label)


def _write(folder: Path, source: Source, places: Sequence[int] | np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, record in zip(places, fetch(source, places), strict=True):
        pixels = np.asarray(record["image"])[..., ::-1]  # OpenCV writes BGR.
        cv2.imwrite(str(folder / f"{place}.png"), pixels)


def _report(rows: Sequence[grid.Row], settings: Budget, data: str, first: float) -> str:
    means = {way: [row["top1"] for row in rows if row["way"] == way] for way in WAYS}
    table = grid.markdown_table(
        ("way", "learning rate", "layer decay", "test top-1", "lowest", "highest"),
        [
            (
                way,
                WAYS[way]["base_learning_rate"],
                WAYS[way].get("layer_decay", 1.0),
                f"{statistics.mean(found):.1%}",
                f"{min(found):.1%}",
                f"{max(found):.1%}",
            )
            for way, found in means.items()
        ],
    )
    top1 = {way: 100 * statistics.mean(found) for way, found in means.items()}
    gains = sorted(top1[way] - top1["from scratch"] for way in WAYS if way != "from scratch")
    verdict = (
        "What starts from the network that has learned ends between "
        f"{gains[0]:+.1f} and {gains[-1]:+.1f} points of training from scratch; "
        f"{settings.seeds} runs of each are too few to tell the ways apart by less than their own "
        "spread."
    )
    return f"""
{verdict}

A network that has learned half of the classes of {data} ({settings.steps} steps, test top-1
{first:.1%}) learns the other half from {settings.examples} images of each, in
{settings.tuning_steps} steps of {_BATCH}; so many seeds, each with other images: {settings.seeds}.

{table}

![Top-1 on the test images by step](curves.png)
"""


def _draw(workdir: Path, members: Sequence[Mapping[str, Any]]) -> None:
    """Top-1 on the test images by step, the mean over seeds of each way."""
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for way in WAYS:
        curves = []
        for member in members:
            if member["way"] == way:
                lines = (_folder(workdir, member) / "metrics.jsonl").read_text().splitlines()
                rows = [row for row in map(json.loads, lines) if row["split"] == "test"]
                curves.append([row["top1"] for row in rows])
        axes.plot([row["step"] for row in rows], np.mean(curves, axis=0), marker="o", label=way)
    axes.set(xlabel="step", ylabel="test top-1", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(workdir / "curves.png")


if __name__ == "__main__":
    main()
