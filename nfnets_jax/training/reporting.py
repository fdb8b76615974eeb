"""What a run tells: lines on the terminal, ``metrics.jsonl``, TensorBoard, curves and a summary."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import tensorboardX
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nfnets_jax.atomic import atomic_write
from nfnets_jax.models.counting import Summary

Row = dict[str, Any]
# At most so often the curves are drawn anew between evaluations.
_DRAW_SECONDS = 60


class Reporter:
    """Tells of a run as it goes: the terminal, ``metrics.jsonl``, TensorBoard, ``curves.png``.

    A row of ``metrics.jsonl`` is a JSON object with ``step`` (updates done), ``split`` and figures.
    Opened again at a step, the file loses the rows after it, which the run is about to write anew.
    On a terminal a live bar shows where the run stands; elsewhere each row is a line. Without a
    workdir nothing is told: of several hosts one tells for all.
    """

    def __init__(self, workdir: Path | None, step: int, num_steps: int, batch_size: int):
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

    def compiled(self, step: int) -> None:
        """Tells that the first step, ``step``, is done; from now on its speed is counted."""
        self.say(f"compiled in {time.monotonic() - self._start:.0f} s")
        self._start_clock(step)

    def _start_clock(self, step: int) -> None:
        self._start, self._first_step = time.monotonic(), step
        self._window_start, self._window_step, self._waited = self._start, step, 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Keeps the time spent inside out of images a second."""
        start = time.monotonic()
        yield
        self._window_start += time.monotonic() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def train(self, step: int, figures: Mapping[str, float]) -> None:
        """Reports on the training steps since the last report, up to ``step``."""
        now = time.monotonic()
        seconds = max(now - self._window_start, 1e-9)
        speed = self._batch_size * (step - self._window_step) / seconds
        waited = min(1.0, self._waited / seconds)
        self._window_start, self._window_step, self._waited = now, step, 0.0
        self._write(step, "train", {**figures, "images_per_second": speed, "data_wait": waited})
        pace = (now - self._start) / max(1, step - self._first_step)
        left = datetime.timedelta(seconds=round(pace * (self._num_steps - step)))
        line = (
            f"loss {figures['loss']:.4f}  top-1 {figures['top1']:.1%}  "
            f"lr {figures['learning_rate']:.4f}  {speed:,.0f} images/s  "
            f"{waited:.0%} waiting for data  {left} left"
        )
        self._bar.update(self._task, completed=step, description=line)
        if now > self._drawn + _DRAW_SECONDS:
            self._draw()
        if not self._console.is_terminal:
            self.say(f"step {step}/{self._num_steps}  {line}")

    def test(self, step: int, figures: Mapping[str, float]) -> None:
        """Reports on an evaluation and draws the curves anew."""
        self._write(step, "test", figures)
        self._draw()
        self.say(
            f"test at step {step}: loss {figures['loss']:.4f}  top-1 {figures['top1']:.2%}; moving "
            f"average: loss {figures['ema_loss']:.4f}  top-1 {figures['ema_top1']:.2%}"
        )

    def clipping(self, step: int, figures: Mapping[str, float]) -> None:
        """Reports to TensorBoard how hard each parameter was clipped at a step."""
        for name, value in figures.items():
            self._tensorboard.add_scalar(f"clipping/{name}", value, step)

    def model(self, summary: Summary) -> None:
        """Prints what a network is made of and what it asks for."""
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
        """Shows TensorBoard input images as the network gets them, ``[N, H, W, C]`` uint8."""
        for index, image in enumerate(images):
            self._tensorboard.add_image(f"images/{index}", image, step, dataformats="HWC")

    def histograms(self, step: int, params: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Shows TensorBoard how the values of each parameter are spread."""
        for module, arrays in params.items():
            for name, array in arrays.items():
                self._tensorboard.add_histogram(f"parameters/{module}/{name}", array, step)

    def say(self, message: str) -> None:
        """Prints a line."""
        self._console.print(message, markup=False)

    def last(self, split: str) -> Row | None:
        """The newest row of a split."""
        return next((row for row in reversed(self.rows) if row["split"] == split), None)

    def close(self) -> None:
        """Writes out what is buffered and leaves the bar as it stands."""
        self._draw()
        self._bar.stop()
        self._file.close()
        self._tensorboard.close()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._workdir:
            plot_curves(self.rows, self._workdir / "curves.png")

    def _write(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        # JSON has no NaN.
        finite = {name: v if math.isfinite(v) else None for name, v in figures.items()}
        self.rows.append({"step": step, "split": split, **finite})
        self._file.write(json.dumps(self.rows[-1]) + "\n")
        self._file.flush()


def _complete_rows(path: Path) -> list[Row]:
    """The rows of a file whose last line may have been cut off by a kill."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def plot_curves(rows: list[Row], path: Path) -> None:
    """Draws loss and top-1 of training and of evaluation by step."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, label in zip(axes, ("loss", "top1"), ("loss (nats)", "top-1"), strict=True):
        _curve(
            axis,
            rows,
            "train",
            name,
            "training (labels smoothed)" if name == "loss" else "training",
            color="C0",
            alpha=0.6,
        )
        _curve(axis, rows, "test", name, "test", color="C1", marker=".")
        _curve(axis, rows, "test", f"ema_{name}", "test, moving average", color="C2", marker=".")
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    axes[0].set_yscale("log")
    axes[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _curve(axis: Any, rows: list[Row], split: str, name: str, label: str, **style: Any) -> None:
    points = [(r["step"], r[name]) for r in rows if r["split"] == split and r.get(name) is not None]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, **style)


def params_sha256(params: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """SHA-256 over the bytes of the parameters, modules and parameters in sorted order."""
    digest = hashlib.sha256()
    for module in sorted(params):
        for name in sorted(params[module]):
            digest.update(np.ascontiguousarray(params[module][name]).tobytes())
    return digest.hexdigest()


def environment(devices: list[jax.Device]) -> dict[str, Any]:
    """The machine and the versions that figures were measured with."""
    packages = ("jax", "jaxlib", "dm-haiku", "optax", "grain", "orbax-checkpoint", "numpy")
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
    """Writes JSON for people to read, all or nothing."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that at any moment there is the old one or the new one, whole."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
