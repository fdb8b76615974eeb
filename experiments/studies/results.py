"""Writes the results of a study: ``results.json``, ``results.md`` and pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure

from nfnets_jax.atomic import atomic_write
from nfnets_jax.devices import processor
from nfnets_jax.training import reporting

from .grid import Row, Settings, format_cell


class Results(NamedTuple):
    """Rows, tables and pictures of a study.

    Attributes:
      conditions: settings shared by all runs.
      rows: settings and figures of each run, from ``grid.run_grid``.
      tables: Markdown tables, each with a caption that defines its columns.
      pictures: figures by file name, without the suffix.
    """

    conditions: Settings
    rows: Sequence[Row]
    tables: Sequence[str]
    pictures: Mapping[str, Figure]


def write(workdir: Path, command: str, results: Results) -> None:
    """Writes the results and the conditions that they were measured under.

    ``results.json`` holds all rows, ``results.md`` the tables and pictures; both state the command,
    the machine, the date and the versions.
    """
    environment = reporting.environment(jax.local_devices())
    versions = environment.pop("versions")
    conditions = {
        **results.conditions,
        "runs": len(results.rows),
        "run_seconds": round(sum(row["seconds"] for row in results.rows)),
        "processor": processor(),
        **environment,
        **versions,
    }
    for name, figure in results.pictures.items():
        with atomic_write(workdir / f"{name}.png") as partial:
            figure.savefig(partial, format="png")
    json_text = render_json(command, conditions, results.rows)
    reporting.write_atomically(workdir / "results.json", json_text)
    markdown = render_markdown(command, conditions, results)
    reporting.write_atomically(workdir / "results.md", markdown)


def render_json(command: str, conditions: Settings, rows: Sequence[Row]) -> str:
    """Returns the JSON object ``{"command", "conditions", "rows"}``, with one line per row."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return (
        f'{{"command": {json.dumps(command)},\n'
        f'"conditions": {json.dumps(dict(conditions))},\n'
        f'"rows": [\n{lines}\n]}}\n'
    )


def render_markdown(command: str, conditions: Settings, results: Results) -> str:
    """Returns the command, the tables, the pictures and the conditions in Markdown."""
    pictures = [f"![{name.replace('_', ' ')}]({name}.png)" for name in results.pictures]
    listed = ", ".join(f"{name} {format_cell(value)}" for name, value in conditions.items())
    parts = ["# Results", f"    {command}", *results.tables, *pictures, f"Conditions: {listed}."]
    return "\n\n".join(parts) + "\n"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table under its caption."""
    cells = [header, ["---"] * len(header), *([format_cell(x) for x in row] for row in rows)]
    lines = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return f"{caption}\n\n{lines}"
