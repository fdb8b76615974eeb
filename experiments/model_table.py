"""Lists all models for ImageNet in one table: size, cost, times and published accuracy.

    python -m experiments.model_table
    python -m experiments.model_table --measure=nfnet_f0,resnet50,efficientnet_b0

Prints the table and writes it to ``docs/model_table.md`` and ``.csv``, with pictures of accuracy
against training step, parameters and multiply-adds in ``docs/images``. Counting runs no network.

``--measure`` times a training step at the training resolution and inference at the test resolution,
on one device, each in a process of its own. Times are stored in ``docs/model_table.json`` as they
come: the same command resumes where it was interrupted and repeats no measurement, unless that file
is deleted. A model that fails is omitted with a message, and the exit code is then 1.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import rich.console
import rich.progress
from matplotlib.figure import Figure

import nfnets_jax
from nfnets_jax.atomic import atomic_write_for_user
from nfnets_jax.errors import InputError, nearest
from nfnets_jax.models import counting
from nfnets_jax.models.registry import PRECISIONS, Model

from .published_results import ABLATION, PUBLISHED, TIMES_SOURCE, Published

# Networks for smaller images are not for ImageNet.
_MIN_SIZE = 128
_MEASURED = ("date", "processor", "device", "python", "jax", "haiku", "batch", "precision")
_CONDITIONS = (*_MEASURED, "remark")
_HEADER = (
    "model",
    "parameters (million)",
    "pixels, training / test",
    "multiply-adds (billion)",
    "activations (million)",
    "training step (s)",
    "inference (s)",
    "top-1 (%)",
    "top-5 (%)",
    "TPUv3 step (ms)",
    "V100 step (ms)",
)
_NOTES = """\
Multiply-adds ("FLOPs") and activations, the outputs of convolutions and matrix products, are for
one image at the test resolution, counted by `nfnets_jax.models.counting`. For NFNets, ResNet-50 and
EfficientNets they are within 3% of the published multiply-adds, except for EfficientNet-B4 and B5,
published with 4.2 and 9.9 billion; torchvision's documentation has 4.39 billion for B4 too.
"""
# Patterns of the names of the families in the pictures, of which the group is a point's name.
_FAMILIES = {
    r"nfnet_(f\d)": "NFNet",
    r"nfnet_(f\d)_bn": "batch-normalized NFNet",
    r"efficientnet_(b\d)": "EfficientNet",
}
# Horizontal axes of the pictures of accuracy, and their labels.
_PICTURES = (
    ("training_step", "training step on a TPUv3, 32 images per device, as published (ms)"),
    ("parameters", "parameters (million)"),
    ("multiply_adds", "multiply-adds per image at the test resolution (billion)"),
)

Times = Mapping[str, Any]


class Row(NamedTuple):
    """A model with its counts, its measured times (empty if none) and its published results."""

    model: Model
    summary: counting.Summary
    times: Times
    published: Published


class MeasurementError(Exception):
    """The command that times a model failed."""


def main() -> None:
    """Writes the table that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="*", help="a pattern of names, such as 'nfnet_f?'")
    parser.add_argument("--measure", default="", help="models to time: comma-separated, or all")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after two untimed ones")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--remark", default="", help="on the times, such as the machine's load")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the tables")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # An accelerator is for the timing processes.
    try:
        failed = _write(arguments)
    except InputError as error:
        sys.exit(str(error))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _write(arguments: argparse.Namespace) -> list[str]:
    """Writes all files and returns the names of models that could not be timed."""
    listed = [nfnets_jax.create_model(name) for name in nfnets_jax.list_models(arguments.models)]
    models = {model.name: model for model in listed if model.config.test_size >= _MIN_SIZE}
    if not models:
        raise InputError(f"--models: no name of a model for ImageNet matches {arguments.models!r}")
    wanted = list(models)
    if arguments.measure != "all":
        wanted = [name for name in arguments.measure.split(",") if name]
    for name in wanted:
        if name not in models:
            raise InputError(f"--measure: no model {name!r}; {nearest(name, models)}")
    times, failed = _measured([models[name] for name in wanted], arguments)
    bar = rich.progress.track(
        models.values(), "counting", console=rich.console.Console(stderr=True)
    )
    rows = []
    for model in bar:
        summary = counting.summarize(model, model.config.test_size)
        for published in PUBLISHED.get(model.name, (Published(),)):
            # Times were measured without what a note says.
            measured = {} if published.note else times.get(model.name, {})
            rows.append(Row(model, summary, measured, published))
    table = _table(rows)
    print(table)
    with atomic_write_for_user(arguments.out / "model_table.md") as partial:
        partial.write_text(table)
    _write_csv(rows, arguments.out / "model_table.csv")
    for name, label in _PICTURES:
        with atomic_write_for_user(arguments.out / "images" / f"accuracy_by_{name}.png") as partial:
            _picture(rows, name, label).savefig(partial, dpi=150, format="png")
    return failed


def _measured(
    models: Sequence[Model], arguments: argparse.Namespace
) -> tuple[dict[str, Times], list[str]]:
    """Times the models that have no times yet.

    Returns:
      Times by model, also from earlier commands, and the names of models that failed.
    """
    file: Path = arguments.out / "model_table.json"
    times: dict[str, Times] = {}
    if file.is_file():
        try:
            times = json.loads(file.read_text())
        except ValueError:
            raise InputError(f"{file} is not JSON; delete it to measure again") from None
    conditions = {"batch": arguments.batch, "precision": arguments.precision}
    missing = [
        model for model in models if not conditions.items() <= times.get(model.name, {}).items()
    ]
    failed, start = [], time.perf_counter()
    for index, model in enumerate(missing):
        print(f"timing {model.name}, {index + 1} of {len(missing)}", file=sys.stderr, flush=True)
        try:
            training = _time(model, model.config.train_size, arguments)
            inference = _time(model, model.config.test_size, arguments, "--forward")
        except MeasurementError as error:
            failed.append(model.name)
            print(f"{model.name} is omitted: {error}", file=sys.stderr, flush=True)
            continue
        times[model.name] = {
            "training_seconds": training["seconds"],
            "inference_seconds": inference["seconds"],
            **{key: training[key] for key in _MEASURED},
            "remark": arguments.remark,
        }
        with atomic_write_for_user(file) as partial:
            partial.write_text(json.dumps(times, indent=1) + "\n")
        left = (time.perf_counter() - start) / (index + 1) * (len(missing) - index - 1)
        print(
            f"{model.name}: training step {training['seconds']:.3g} s, inference "
            f"{inference['seconds']:.3g} s; about {left / 60:.0f} minutes left",
            file=sys.stderr,
            flush=True,
        )
    return times, failed


def _time(model: Model, size: int, arguments: argparse.Namespace, *flags: str) -> Times:
    """Returns the figures that ``benchmarks.train_step`` prints.

    Raises:
      MeasurementError: the command failed or printed no figures.
    """
    settings = {
        "model": model.name,
        "size": size,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "precision": arguments.precision,
    }
    named = (f"--{key}={value}" for key, value in settings.items())
    command = [sys.executable, "-m", "benchmarks.train_step", *named, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        done.check_returncode()
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.CalledProcessError, IndexError, ValueError) as error:
        last = done.stderr.strip().splitlines()[-1:] or [str(error)]
        raise MeasurementError(f"{' '.join(command[1:])}: {last[0]}") from None


def _label(row: Row) -> str:
    note = row.published.note
    return f"{row.model.name} {note}" if note else row.model.name


def _cells(row: Row) -> list[str]:
    published, work = row.published, row.summary.work
    config = row.model.config
    return [
        _label(row),
        f"{row.summary.parameters / 1e6:.2f}",
        f"{config.train_size} / {config.test_size}",
        f"{work.multiply_adds / 1e9:.2f}",
        f"{work.activations / 1e6:.1f}",
        *(
            f"{row.times[key]:.3g}" if row.times else ""
            for key in ("training_seconds", "inference_seconds")
        ),
        *("" if value is None else f"{value}" for value in published[:4]),
    ]


def _table(rows: Sequence[Row]) -> str:
    """Returns the table, its conditions and its sources in Markdown."""
    lines = ["# All models", "", "| " + " | ".join(_HEADER) + " |"]
    lines.append("| --- |" + " ---: |" * (len(_HEADER) - 1))
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    lines += ["", _NOTES]
    measured: dict[str, list[str]] = {}
    for row in rows:
        if row.times:
            conditions = ", ".join(f"{key} {row.times[key]}" for key in _MEASURED)
            if row.times["remark"]:
                conditions += f"; {row.times['remark']}"
            measured.setdefault(conditions, []).append(row.model.name)
    for conditions, names in measured.items():
        timed = f"Measured seconds per batch of {', '.join(names)}"
        lines += [f"{timed}: medians of `benchmarks.train_step`; {conditions}.", ""]
    for source in dict.fromkeys(row.published.source for row in rows if row.published.source):
        names = [_label(row) for row in rows if row.published.source == source]
        lines += [f"Accuracies of {', '.join(names)}: {source}.", ""]
    if any(row.published.tpu_ms for row in rows):
        lines += [
            "Published training steps, of 32 images per device, on 32 devices of a TPUv3 and on "
            f"one V100: {TIMES_SOURCE}, appendix A.2.",
            "",
        ]
    lines += _ablation()
    for name, _ in _PICTURES:
        lines += [f"![Accuracy by {name.replace('_', ' ')}](images/accuracy_by_{name}.png)", ""]
    return "\n".join(lines)


def _ablation() -> list[str]:
    """Returns the published ablation of NFNets in lines of Markdown."""
    lines = ["## NFNets step by step", "", "| top-1 (%) and TPUv3 step (ms) | F0 | F1 | F2 | F3 |"]
    lines.append("| --- |" + " ---: |" * 4)
    for step, results in ABLATION.items():
        cells = (f"{top1}, {milliseconds}" for top1, milliseconds in results)
        lines.append(f"| {step} | {' | '.join(cells)} |")
    seeds = "accuracies of NFNets are means of three seeds (table 2)"
    return [*lines, "", f"{TIMES_SOURCE}, table 6; {seeds}.", ""]


def _write_csv(rows: Sequence[Row], file: Path) -> None:
    """Writes unrounded numbers; cells without one are empty."""
    with atomic_write_for_user(file) as partial, partial.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(
            ["model", "parameters", "train_size", "test_size", "multiply_adds", "activations",
             "training_seconds", "inference_seconds", *_CONDITIONS, *Published._fields]
        )  # fmt: skip
        for row in rows:
            config, work = row.model.config, row.summary.work
            measured = ("training_seconds", "inference_seconds", *_CONDITIONS)
            writer.writerow(
                [
                    row.model.name,
                    row.summary.parameters,
                    config.train_size,
                    config.test_size,
                    *work,
                    *(row.times.get(key) for key in measured),
                    *row.published,
                ]
            )


def _picture(rows: Sequence[Row], name: str, label: str) -> Figure:
    """Draws published top-1 against the figure ``name``, with a line for each family."""

    def abscissa(row: Row) -> float | None:
        return {
            "training_step": row.published.tpu_ms,
            "parameters": row.summary.parameters / 1e6,
            "multiply_adds": row.summary.work.multiply_adds / 1e9,
        }[name]

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    drawn = {row.model.name: row for row in reversed(rows)}  # The first row of each network.
    for pattern, family in _FAMILIES.items():
        points = [
            (x, y, found[1].upper())
            for model, row in reversed(drawn.items())
            if (found := re.fullmatch(pattern, model))
            and (x := abscissa(row))
            and (y := row.published.top1)
        ]
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=family)
        for x, y, text in points:
            axes.annotate(text, (x, y), (4, -10), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel=label, ylabel="published ImageNet top-1 (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
