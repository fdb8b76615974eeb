"""What a run tells: lines on the terminal, ``metrics.jsonl``, TensorBoard, curves and a summary."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
import tensorboardX

Row = dict[str, Any]


class MetricsLog:
    """The figures of a run by step: rows of ``metrics.jsonl``, and the same as TensorBoard scalars.

    A row is a JSON object with ``step`` (updates done), ``split`` and figures. Opened again at a
    step, the log loses the rows after it, which the run is about to write anew.
    """

    def __init__(self, workdir: Path, step: int):
        self._path = workdir / "metrics.jsonl"
        self.rows: list[Row] = [row for row in _complete_rows(self._path) if row["step"] <= step]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)

    def write(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        """Adds a row; a figure that is not finite becomes null in the file, as JSON has no NaN."""
        values = {name: float(value) for name, value in figures.items()}
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        self.rows.append({"step": step, "split": split, **finite})
        self._file.write(json.dumps(self.rows[-1]) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Writes out what is buffered."""
        self._file.close()
        self._tensorboard.close()


def _complete_rows(path: Path) -> list[Row]:
    """The rows of a file whose last line may have been cut off by a kill."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Progress:
    """Where a run stands: a live bar on a terminal, a line a report elsewhere."""

    def __init__(self, num_steps: int, step: int):
        self._num_steps = num_steps
        self._first_step = step
        self._start = time.monotonic()
        self._console = rich.console.Console(highlight=False, soft_wrap=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=num_steps, completed=step)
        self._bar.start()

    def advance(self, step: int, figures: str) -> None:
        """Shows the figures of a step and the time left."""
        pace = (time.monotonic() - self._start) / max(1, step - self._first_step)
        left = datetime.timedelta(seconds=round(pace * (self._num_steps - step)))
        self._bar.update(self._task, completed=step, description=f"{figures}  {left} left")
        if not self._console.is_terminal:
            self.say(f"step {step}/{self._num_steps}  {figures}  {left} left")

    def say(self, message: str) -> None:
        """Prints a line."""
        self._console.print(message, markup=False)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()


def plot_curves(rows: list[Row], path: Path) -> None:
    """Draws loss and top-1 of training and of evaluation by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, label in zip(axes, ("loss", "top1"), ("loss (nats)", "top-1"), strict=True):
        _curve(axis, rows, "train", name, "training batches", color="C0", alpha=0.6)
        _curve(axis, rows, "test", name, "test", color="C1", marker=".")
        _curve(axis, rows, "test", f"ema_{name}", "test, moving average", color="C2", marker=".")
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes[1].legend(loc="lower right")
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)
    os.replace(partial, path)


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
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
