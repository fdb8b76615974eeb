import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments.studies import grid
from nfnets_jax.errors import InputError

GRID = [{"rate": rate, "batch": batch} for batch in (8, 16) for rate in (0.1, 1.0)]


def test_a_study_that_was_stopped_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []

    def run(settings: Mapping[str, Any]) -> dict[str, float]:
        if len(ran) == 2:
            ran.append("stopped")
            raise KeyboardInterrupt
        ran.append(settings)
        return {"loss": settings["rate"] * settings["batch"]}

    with pytest.raises(KeyboardInterrupt):
        grid.run_grid(tmp_path, {"steps": 3}, GRID, run)
    rows = grid.run_grid(tmp_path, {"steps": 3}, GRID, run)
    assert ran == [*GRID[:2], "stopped", *GRID[2:]]
    assert [row["loss"] for row in rows] == pytest.approx([0.8, 8, 1.6, 16])
    said = capsys.readouterr().out
    assert "2 of 4 runs are there from before" in said
    assert "4/4  rate 1  batch 16  loss 16" in said


def test_a_workdir_of_another_study_is_refused(tmp_path: Path) -> None:
    grid.run_grid(tmp_path, {"steps": 3}, GRID[:1], lambda _: {})
    with pytest.raises(InputError, match="steps 3, now 4: give another --workdir"):
        grid.run_grid(tmp_path, {"steps": 4}, GRID[:1], lambda _: {})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be a workdir: Not a directory"):
        grid.run_grid(tmp_path / "file" / "below", {}, GRID[:1], lambda _: {})


def test_the_report_has_all_rows_and_the_machine(tmp_path: Path) -> None:
    rows = grid.run_grid(tmp_path, {"steps": 3}, GRID[:2], lambda _: {"loss": float("nan")})
    assert [json.loads(file.read_text())["loss"] for file in tmp_path.glob("runs/*.json")] == [
        None,
        None,
    ]
    table = grid.markdown_table(["rate", "loss"], ((row["rate"], row["loss"]) for row in rows))
    assert table.splitlines()[2:] == ["| 0.1 | – |", "| 1 | – |"]  # noqa: RUF001
    grid.write_report(tmp_path, "A claim", rows, table, {"steps": 3})
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# A claim\n\n| rate")
    assert "steps 3, runs 2, date 20" in report
    assert "optax " in report
    with (tmp_path / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [(row["rate"], row["loss"]) for row in read] == [("0.1", ""), ("1.0", "")]
