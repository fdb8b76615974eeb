"""What all studies need: a grid of runs that goes on where it stopped, and a report of it.

A study is a program ``python -m experiments.studies.NAME --budget= --workdir= --data_dir=`` that
hands its settings and a function for one of them to ``run_grid``, and what came back to
``write_report``.
"""

import argparse
import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import process
from nfnets_jax.errors import InputError
from nfnets_jax.training import reporting

BUDGETS = ("smoke", "cpu", "gpu")

Settings = Mapping[str, Any]
Row = dict[str, Any]


def parse(description: str, name: str) -> argparse.Namespace:
    """The command line of a study, with ``budget``, ``workdir`` and ``data_dir``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--budget", default="smoke", choices=BUDGETS)
    parser.add_argument("--workdir", type=Path, help=f"runs/studies/{name}/BUDGET if not given")
    parser.add_argument("--data_dir", type=Path, help="where the study's data lie, if it needs any")
    arguments = parser.parse_args()
    arguments.workdir = arguments.workdir or Path("runs/studies") / name / arguments.budget
    return arguments


def command(description: str, name: str, study: Callable[[Path, str, Path | None], None]) -> None:
    """Runs ``study(workdir, budget, data_dir)``, which trains; bad input ends it with one line."""
    arguments = parse(description, name)
    process.keep_freed_memory()
    process.cache_compiled_programs()  # Runs that differ by their seed share them.
    try:
        study(arguments.workdir, arguments.budget, arguments.data_dir)
    except InputError as error:
        sys.exit(f"error: {error}")


def run_grid(
    workdir: Path,
    common: Settings,
    grid: Sequence[Settings],
    run: Callable[[Settings], Mapping[str, float]],
) -> list[Row]:
    """Runs what has not been run yet; a study that was stopped goes on.

    Each run is kept as it ends, in ``workdir/runs``, as JSON with its settings and figures. How far
    the study is, and about how long it will take, is printed.

    Args:
      workdir: of the study; it is made.
      common: what holds of all runs (budget, steps), JSON's types.
      grid: what is particular to each, JSON's types, no two the same.
      run: of a member of the grid, its figures. One that is not finite is kept as None.

    Returns:
      A row for each member, in the grid's order: its settings, its figures and its ``seconds``.

    Raises:
      InputError: the workdir cannot be made, or holds a study with other common settings.
    """
    _claim(workdir, common)
    files = [workdir / "runs" / f"{file_name(settings)}.json" for settings in grid]
    if len(set(files)) < len(files):
        raise ValueError("two members of the grid are the same")
    left = [file for file in files if not file.exists()]
    if len(left) < len(files):
        print(f"{len(files) - len(left)} of {len(files)} runs are there from before", flush=True)
    start, done = time.monotonic(), 0
    for index, (settings, file) in enumerate(zip(grid, files, strict=True), 1):
        if file.exists():
            continue
        began = time.monotonic()
        figures = {name: _finite(value) for name, value in run(settings).items()}
        now = time.monotonic()
        row = {**settings, **figures, "seconds": round(now - began, 2)}
        reporting.write_json(file, row)
        done += 1
        rest = (now - start) / done * (len(left) - done)
        shown = "  ".join(f"{name} {_shown(value)}" for name, value in row.items())
        print(f"{index}/{len(files)}  {shown}  left: about {rest:.0f} s", flush=True)
    return [json.loads(file.read_text("utf-8")) for file in files]


def write_report(
    workdir: Path,
    title: str,
    rows: Sequence[Row],
    body: str,
    common: Settings,
) -> None:
    """Writes ``results.csv``, all rows, and ``report.md``: title, text, then machine and versions.

    ``body`` is Markdown, the verdict first; pictures are named relative to the workdir.
    """
    fields = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    reporting.write_atomically(workdir / "results.csv", table.getvalue())
    environment = reporting.environment(jax.local_devices())
    versions = environment.pop("versions")
    conditions = {**common, "runs": len(rows), **environment, **versions}
    listed = ", ".join(f"{name} {value}" for name, value in conditions.items())
    seconds = sum(row["seconds"] for row in rows)
    reporting.write_atomically(
        workdir / "report.md", f"# {title}\n\n{body.strip()}\n\n{listed}; {seconds:.0f} s in all.\n"
    )
    print(f"{workdir / 'report.md'}", flush=True)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers with four digits, None as a dash."""
    lines = [header, ["---"] * len(header), *([_shown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _claim(workdir: Path, common: Settings) -> None:
    """Makes the folder, or takes it up again if it belongs to the same study."""
    file = workdir / "study.json"
    try:
        if file.exists():
            before = json.loads(file.read_text("utf-8"))
            names = sorted(
                name for name in {**before, **common} if before.get(name) != common.get(name)
            )
            if names:
                differ = ", ".join(f"{n} {before.get(n)}, now {common.get(n)}" for n in names)
                raise InputError(f"{workdir} holds a study with {differ}: give another --workdir")
        (workdir / "runs").mkdir(parents=True, exist_ok=True)
        reporting.write_json(file, dict(common))
    except OSError as error:
        raise InputError(f"{workdir} cannot be a workdir: {error.strerror}") from error


def file_name(settings: Settings) -> str:
    """A name for the files of one run."""
    return "_".join(f"{name}-{_shown(value)}".replace("/", "-") for name, value in settings.items())


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None:
        return "–"  # noqa: RUF001, a dash is meant
    return f"{value:.4g}" if isinstance(value, float) else str(value)
