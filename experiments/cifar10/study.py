"""Measures accuracy and minutes of the record from a cold start, over several seeds.

    python -m experiments.cifar10.study --budget=cpu --data_dir=TFDS_DIR

Each run is the command ``python -m experiments.cifar10.train``, as a process of its own without
compiled programs; its time is that of the whole process. Without ``--data_dir`` it trains on a few
synthetic images, which shows only that it runs.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from nfnets_jax.errors import InputError

from ..studies import command, grid, results


class Budget(NamedTuple):
    """The runs of a study.

    Attributes:
      config: the name of the configuration.
      seeds: number of runs, with the seeds 0, 1, ...
      tried: number of configurations that were compared on held-out images to choose this one.
      flags: further flags of the command.
    """

    config: str
    seeds: int
    tried: int
    flags: tuple[str, ...] = ()


BUDGETS = {
    "smoke": Budget("nfnet_cifar10", 2, 0, ("--config.num_steps=4",)),
    "cpu": Budget("nfnet_cifar10", 3, 152),
    "gpu": Budget("nfnet_cifar10_gpu", 5, 0),
}


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Trains, and draws the curves."""
    settings = BUDGETS[budget]
    data = [f"--config.data.dir={data_dir}"] if data_dir else ["--config.data.name=synthetic"]
    common = {
        "budget": budget,
        "config": settings.config,
        "data": "tfds:cifar10" if data_dir else "synthetic",
    }

    def run(member: grid.Settings) -> dict[str, float]:
        folder = _folder(workdir, member)
        shutil.rmtree(
            folder, ignore_errors=True
        )  # An interrupted run starts again, as its time is measured.
        minutes = _train([f"--config={settings.config}", *data, *settings.flags], folder, member)
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        return {"top1": summary["test"]["top1"], "minutes": minutes}

    members = [{"seed": seed} for seed in range(settings.seeds)]
    rows = grid.run_grid(workdir, common, members, run)
    table = results.table(
        f"Test top-1 and minutes; {settings.tried} configurations were tried on held-out images.",
        ("seed", "test top-1", "minutes"),
        [(row["seed"], f"{row['top1']:.2%}", f"{row['minutes']:.1f}") for row in rows],
    )
    return results.Results(common, rows, [table], {"accuracy": _draw(workdir, rows)})


def _train(flags: Sequence[str], folder: Path, member: grid.Settings) -> float:
    """Trains with an empty cache of compiled programs, and returns the minutes."""
    command = [sys.executable, "-m", f"{__package__}.train", *flags]
    command += [f"--config.seed={member['seed']}", f"--workdir={folder}"]
    with tempfile.TemporaryDirectory() as cache:
        start = time.monotonic()
        ended = subprocess.run(
            command, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}, check=False
        )
        seconds = time.monotonic() - start
    if ended.returncode:
        raise InputError(f"{' '.join(command)} ended with exit code {ended.returncode}")
    return seconds / 60


def _folder(workdir: Path, member: grid.Settings) -> Path:
    return workdir / "training" / grid.file_name(member)


def _draw(workdir: Path, rows: Sequence[grid.Row]) -> Figure:
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for row in rows:
        lines = (_folder(workdir, {"seed": row["seed"]}) / "metrics.jsonl").read_text("utf-8")
        metrics = [json.loads(line) for line in lines.splitlines()]
        learned = [point for point in metrics if point["split"] == "train"]
        steps = [point["step"] for point in learned]
        color = f"C{row['seed']}"
        axes.plot(steps, [point["top1"] for point in learned], color=color, alpha=0.4)
        axes.plot(steps[-1:], row["top1"], "o", color=color, label=f"seed {row['seed']}, test")
    axes.set(xlabel="step", ylabel="top-1", title="lines: training images; dots: test images")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    command.run("experiments.cifar10.study", __doc__, study)
