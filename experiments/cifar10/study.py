"""CIFAR-10 without normalization: accuracy and minutes from a cold start, of several seeds.

    python -m experiments.studies.cifar10 --budget=cpu --data_dir=TFDS_DIR

Each run is the command that anyone would type, ``python -m experiments.run --config=...``, as a
process of its own that finds nothing compiled; its time is all that passes until it has ended.
Without ``--data_dir`` it learns a few synthetic images, which shows only that it runs.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.studies import grid
from nfnets_jax.atomic import atomic_write
from nfnets_jax.errors import InputError


class Budget(NamedTuple):
    """What is run.

    Attributes:
      config: of ``experiments/configs``.
      seeds: how many runs, of the seeds 0, 1, ...
      top1, minutes: what is to be reached, and in what time.
      tried: configurations that were trained, on a part of the training images, to choose this one.
      flags: of the command, beside these.
    """

    config: str
    seeds: int
    top1: float
    minutes: float
    tried: int
    flags: tuple[str, ...] = ()


BUDGETS = {
    "smoke": Budget("nfnet_cifar10", 2, 0.1, 2, 0, ("--config.num_steps=4",)),
    "cpu": Budget("nfnet_cifar10", 3, 0.9, 20, 152),
    "gpu": Budget("nfnet_cifar10_gpu", 5, 0.94, 2, 0),
}


def main() -> None:
    """Runs the study."""
    grid.command(__doc__.splitlines()[0], "cifar10", study)


def study(workdir: Path, budget: str, data_dir: Path | None) -> None:
    """Trains, and writes the report."""
    settings = BUDGETS[budget]
    data = [f"--config.data.dir={data_dir}"] if data_dir else ["--config.data.name=synthetic"]
    common = {
        "budget": budget,
        "config": settings.config,
        "data": "tfds:cifar10" if data_dir else "synthetic",
    }

    def run(member: grid.Settings) -> dict[str, float]:
        folder = _folder(workdir, member)
        shutil.rmtree(folder, ignore_errors=True)  # One that was cut off is timed from its start.
        minutes = _train([f"--config={settings.config}", *data, *settings.flags], folder, member)
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        return {"top1": summary["test"]["top1"], "minutes": minutes}

    members = [{"seed": seed} for seed in range(settings.seeds)]
    rows = grid.run_grid(workdir, common, members, run)
    _draw(workdir, rows)
    body = "\n\n".join(
        [
            _verdict(rows, settings),
            "Top-1 is on the test images, which each run looks at once, when it ends. The "
            "configuration was chosen by training images held out from learning; "
            f"{settings.tried} were tried.",
            "![Accuracy on the images learned from, and on the test images](accuracy.png)",
            grid.markdown_table(
                ("seed", "test top-1", "minutes"),
                [(row["seed"], f"{row['top1']:.2%}", f"{row['minutes']:.1f}") for row in rows],
            ),
        ]
    )
    grid.write_report(workdir, "CIFAR-10 without normalization", rows, body, common)


def _train(flags: Sequence[str], folder: Path, member: grid.Settings) -> float:
    """Minutes that the command takes with an empty cache of programs."""
    command = [sys.executable, "-m", "experiments.run", *flags]
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


def _verdict(rows: Sequence[grid.Row], settings: Budget) -> str:
    top1, minutes = ([row[name] for row in rows] for name in ("top1", "minutes"))
    mean = statistics.mean(top1)
    reached = mean >= settings.top1 and max(minutes) <= settings.minutes
    return (
        f"{mean:.2%} ({min(top1):.2%} to {max(top1):.2%}, {len(rows)} seeds) in "
        f"{statistics.mean(minutes):.1f} minutes ({max(minutes):.1f} at most); to be reached were "
        f"{settings.top1:.0%} in {settings.minutes:g}: {'reached' if reached else 'not reached'}."
    )


def _draw(workdir: Path, rows: Sequence[grid.Row]) -> None:
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
    axes.set(xlabel="step", ylabel="top-1", title="lines: images learned from; dots: test images")
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_write(workdir / "accuracy.png") as partial:
        figure.savefig(partial, format="png")


if __name__ == "__main__":
    main()
