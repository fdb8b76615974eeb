"""A grid of runs that resumes where it was interrupted."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nfnets_jax.errors import InputError
from nfnets_jax.training import reporting

Settings = Mapping[str, Any]
Row = dict[str, Any]
Member = TypeVar("Member")


def run_grid(
    workdir: Path,
    common: Settings,
    grid: Sequence[Settings],
    run: Callable[[Settings], Mapping[str, Any]],
) -> list[Row]:
    """Runs every member of the grid that has no result in the working directory yet.

    Each result is written to ``workdir/runs`` as soon as its run ends. Progress and an estimate of
    the remaining time are printed.

    Args:
      workdir: directory of the study; created if absent.
      common: settings shared by all runs, as JSON types.
      grid: settings of each run, as JSON types, all different.
      run: returns the figures of one run, as JSON types. NaN and infinity are stored as None.

    Returns:
      One row per run, in the order of the grid: its settings, its figures and ``seconds``.

    Raises:
      InputError: the directory cannot be created, or holds runs with other common settings.
      ValueError: two members of the grid are equal.
    """
    return run_chunks(workdir, common, [[settings] for settings in grid], lambda only: [run(*only)])


def run_chunks(
    workdir: Path,
    common: Settings,
    chunks: Sequence[Sequence[Settings]],
    run: Callable[[Sequence[Settings]], Sequence[Mapping[str, Any]]],
) -> list[Row]:
    """Does what ``run_grid`` does, for runs that are made several at a time.

    The results of a chunk are written as soon as its runs end. Of an interrupted study's chunks
    only the runs without a result are made.

    Args:
      workdir, common: as ``run_grid`` takes them.
      chunks: settings of the runs that are made together, all different.
      run: returns the figures of each run of a chunk, or of a part of it.

    Returns:
      One row per run, as ``run_grid``; the ``seconds`` of a chunk are shared by its runs.

    Raises:
      InputError, ValueError: as ``run_grid``.
    """
    _open(workdir, common)

    def file_of(settings: Settings) -> Path:
        return workdir / "runs" / f"{file_name(settings)}.json"

    files = [file_of(settings) for chunk in chunks for settings in chunk]
    if len(set(files)) < len(files):
        raise ValueError("two members of the grid are equal")
    remaining = sum(not file.exists() for file in files)
    if 0 < remaining < len(files):
        print(f"resuming: {len(files) - remaining} of {len(files)} runs are done", flush=True)
    start, done = time.monotonic(), 0
    for chunk in chunks:
        missing = [settings for settings in chunk if not file_of(settings).exists()]
        if not missing:
            continue
        chunk_start = time.monotonic()
        found = run(missing)
        now = time.monotonic()
        seconds = round((now - chunk_start) / len(missing), 2)
        done += len(missing)
        left = (now - start) / done * (remaining - done)
        for settings, figures in zip(missing, found, strict=True):
            finite = {name: _finite(value) for name, value in figures.items()}
            row = {**settings, **finite, "seconds": seconds}
            reporting.write_json(file_of(settings), row)
            shown = [f"{k} {format_cell(v)}" for k, v in row.items() if not isinstance(v, list)]
            number = files.index(file_of(settings)) + 1
            print(f"{number}/{len(files)}  {'  '.join(shown)}  {left:.0f} s left", flush=True)
    return [json.loads(file.read_text("utf-8")) for file in files]


def in_chunks(members: Sequence[Member], size: int) -> list[Sequence[Member]]:
    """Divides a sequence into parts of ``size`` members, the last perhaps of fewer."""
    return [members[start : start + size] for start in range(0, len(members), size)]


def file_name(settings: Settings) -> str:
    """Returns the name of the files of one run."""
    named = (f"{name}-{format_cell(value)}" for name, value in settings.items())
    return "_".join(named).replace("/", "-")


def format_cell(value: Any) -> str:
    """Formats a value for people: floats with four digits, None as a dash."""
    if value is None:
        return "–"  # noqa: RUF001, an en dash is meant
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _open(workdir: Path, common: Settings) -> None:
    """Creates the working directory, or checks that its runs have the same common settings."""
    file = workdir / "study.json"
    try:
        if file.exists():
            before = json.loads(file.read_text("utf-8"))
            changed = [
                f"{name} {before.get(name)}, now {common.get(name)}"
                for name in sorted({*before, *common})
                if before.get(name) != common.get(name)
            ]
            if changed:
                raise InputError(
                    f"{workdir} holds a study with {', '.join(changed)}: use another directory"
                )
        (workdir / "runs").mkdir(parents=True, exist_ok=True)
        reporting.write_json(file, dict(common))
    except OSError as error:
        raise InputError(f"{workdir} cannot be used as a workdir: {error.strerror}") from error


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
