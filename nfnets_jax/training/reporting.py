"""Reports of a run: terminal, ``metrics.jsonl``, TensorBoard, curves and summary."""

import contextlib
import csv
import datetime
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import tensorboardX

from nfnets_jax.atomic import atomic_write
from nfnets_jax.data.stages import STAGES
from nfnets_jax.models.counting import Summary
from nfnets_jax.training.classification import CLASSIFICATION
from nfnets_jax.training.curves import plot_curves
from nfnets_jax.training.task import Score

Row = dict[str, Any]
# Least time between two drawings of the curves, unless there is an evaluation.
_DRAW_SECONDS = 60
# Share of the time above which the reasons for waiting are told.
_MUCH_WAITING = 0.05
NO_STAGES: Mapping[str, float] = MappingProxyType({})


class Reporter:
    """Reports the progress of a run to the terminal and to the files of its workdir.

    ``metrics.jsonl`` has one JSON object a row: ``step`` (number of updates), ``split`` (``train``
    or ``test``) and metrics. ``metrics.csv`` has the same as a table, and so have TensorBoard and
    Weights & Biases. On a terminal a progress bar shows the newest training metrics; elsewhere each
    row is printed.

    Attributes:
      rows: the rows of ``metrics.jsonl``.
    """

    def __init__(
        self,
        workdir: Path | None,
        step: int,
        num_steps: int,
        batch_size: int,
        wandb_run: Any = None,
        score: Score = CLASSIFICATION.score,
    ):
        """Opens the files and starts the progress bar.

        Args:
          workdir: folder of the run; None reports nothing, as on all hosts but the first.
          step: the step that the run starts or resumes at. Later rows in the files are discarded,
            as the run writes them again.
          num_steps: the last step.
          batch_size: over all hosts, for the images per second.
          wandb_run: a run of Weights & Biases, which gets the same figures and is finished with
            the report; None for none. It keeps the later rows that it has.
          score: the metric to show beside the loss.
        """
        self._wandb, self._score = wandb_run, score
        self._workdir, self._num_steps, self._batch_size = workdir, num_steps, batch_size
        self.rows: list[Row] = []
        path = Path(os.devnull)
        if workdir:
            path = workdir / "metrics.jsonl"
            self.rows = [row for row in _complete_rows(path) if row["step"] <= step]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir), purge_step=step + 1, write_to_disk=workdir is not None
        )
        self._console = rich.console.Console(highlight=False, soft_wrap=True, quiet=workdir is None)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._drawn = time.monotonic()
        self._task = self._bar.add_task("compiling", total=num_steps, completed=step)
        self._bar.start()
        self._start_clock(step)

    def first_step_done(self, step: int) -> None:
        """Reports that the first step is compiled and done; later steps count for the speed."""
        self.log(f"compiled in {time.monotonic() - self._start:.0f} s")
        self._start_clock(step)

    def _start_clock(self, step: int) -> None:
        self._start, self._first_step = time.monotonic(), step
        self._window_start, self._window_step, self._waited = self._start, step, 0.0

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Excludes the time spent inside from the images per second."""
        start = time.monotonic()
        yield
        self._window_start += time.monotonic() - start

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def train(
        self, step: int, metrics: Mapping[str, float], stages: Mapping[str, float] = NO_STAGES
    ) -> None:
        """Reports the training steps since the last report.

        Args:
          step: the last of them.
          metrics: their means.
          stages: each stage's share of the time that the batches took, as
            ``Reader.stage_shares`` has it.
        """
        now = time.monotonic()
        seconds = max(now - self._window_start, 1e-9)
        speed = self._batch_size * (step - self._window_step) / seconds
        waited = min(1.0, self._waited / seconds)
        self._window_start, self._window_step, self._waited = now, step, 0.0
        self._write(step, "train", {**metrics, "images_per_second": speed, "data_wait": waited})
        pace = (now - self._start) / max(1, step - self._first_step)
        left = datetime.timedelta(seconds=round(pace * (self._num_steps - step)))
        name, label = self._score
        score = f"{label} {metrics[name]:.1%}  " if name in metrics else ""
        line = (
            f"loss {metrics['loss']:.4f}  {score}"
            f"lr {metrics['learning_rate']:.4f}  {speed:,.0f} images/s  "
            f"{waiting(waited, stages)}  {left} left"
        )
        self._bar.update(self._task, completed=step, description=line)
        if now > self._drawn + _DRAW_SECONDS:
            self._draw()
        if not self._console.is_terminal:
            self.log(f"step {step}/{self._num_steps}  {line}")

    def test(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports an evaluation and draws the curves."""
        name, label = self._score
        self._write(step, "test", metrics)
        self._draw()
        self.log(
            f"test at step {step}: loss {metrics['loss']:.4f}  {label} {metrics[name]:.2%}; moving "
            f"average: loss {metrics['ema_loss']:.4f}  {label} {metrics[f'ema_{name}']:.2%}"
        )

    def clipping(self, step: int, stats: Mapping[str, float]) -> None:
        """Reports the clipping statistics of a step to TensorBoard and Weights & Biases."""
        self._track(step, "clipping", stats)

    def model(self, summary: Summary) -> None:
        """Prints a table of the network's parts."""
        table = rich.table.Table("", "output", "parameters", "multiply-adds", box=rich.box.SIMPLE)
        for column in table.columns[1:]:
            column.justify = "right"
        for part in summary.parts:
            size = " x ".join(map(str, part.output_shape))
            table.add_row(part.name, size, f"{part.parameters:,}", f"{part.work.multiply_adds:,}")
        total = (f"{summary.parameters:,}", f"{summary.work.multiply_adds:,}")
        table.add_row("one image", "", *total, style="bold")
        self._console.print(table)

    def images(self, step: int, images: np.ndarray) -> None:
        """Reports augmented images ``[N, H, W, C]`` uint8 to TensorBoard."""
        for index, image in enumerate(images):
            self._tensorboard.add_image(f"images/{index}", image, step, dataformats="HWC")

    def histograms(self, step: int, params: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Reports a histogram of each parameter to TensorBoard."""
        for module, arrays in params.items():
            for name, array in arrays.items():
                self._tensorboard.add_histogram(f"parameters/{module}/{name}", array, step)

    def log(self, message: str) -> None:
        """Prints a line."""
        self._console.print(message, markup=False)

    def last(self, split: str) -> Row | None:
        """Returns the newest row of a split."""
        return next((row for row in reversed(self.rows) if row["split"] == split), None)

    def close(self) -> None:
        """Draws the curves, closes the files and stops the progress bar."""
        self._draw()
        self._bar.stop()
        self._file.close()
        self._tensorboard.close()
        if self._wandb:
            done = bool(self.rows) and self.rows[-1]["step"] == self._num_steps
            self._wandb.finish(exit_code=0 if done else 1)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._workdir:
            plot_curves(self.rows, self._workdir / "curves.png", self._workdir.name, self._score)
            write_atomically(self._workdir / "metrics.csv", as_csv(self.rows))

    def _track(self, step: int, group: str, figures: Mapping[str, float]) -> None:
        """Adds figures, named ``group/figure``, to TensorBoard and Weights & Biases."""
        named = {f"{group}/{name}": value for name, value in figures.items()}
        for name, value in named.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(named, step=step)

    def _write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._track(step, split, metrics)
        # JSON has no NaN.
        finite = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        self.rows.append({"step": step, "split": split, **finite})
        self._file.write(json.dumps(self.rows[-1]) + "\n")
        self._file.flush()


def waiting(waited: float, stages: Mapping[str, float]) -> str:
    """Describes the waiting for data: above 5%, by stage, with what shortens the longest.

    Args:
      waited: share of the time.
      stages: each stage's share of the waiting.
    """
    text = f"{waited:.0%} waiting for data"
    if waited <= _MUCH_WAITING or not stages:
        return text
    shares = sorted(stages.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {share * waited:.0%}" for name, share in shares)
    return f"{text} ({parts}: {STAGES[shares[0][0]]})"


def as_csv(rows: Sequence[Row]) -> str:
    """Returns rows as comma-separated values, a column a metric, empty where it is lacking."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _complete_rows(path: Path) -> list[Row]:
    """Reads the rows of a file whose last line may be incomplete because the run was killed."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def params_sha256(params: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Computes the SHA-256 of the parameters' bytes, modules and parameters in sorted order."""
    digest = hashlib.sha256()
    for module in sorted(params):
        for name in sorted(params[module]):
            digest.update(np.ascontiguousarray(params[module][name]).tobytes())
    return digest.hexdigest()


def environment(devices: list[jax.Device]) -> dict[str, Any]:
    """Describes the date, the devices and the versions of packages, for reports."""
    packages = ("jax", "jaxlib", "dm-haiku", "optax", "orbax-checkpoint", "numpy")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def write_json(path: Path, value: Any) -> None:
    """Writes an indented JSON file atomically."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file atomically: a reader sees the old file or the new one."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
