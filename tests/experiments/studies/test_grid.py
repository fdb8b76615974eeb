import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.studies import grid
from nfnets_jax.errors import InputError

GRID = [{"rate": rate, "batch": batch} for batch in (8, 16) for rate in (0.1, 1.0)]


def test_an_interrupted_study_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[Any] = []

    def run(settings: Mapping[str, Any]) -> dict[str, float]:
        if len(ran) == 2:
            ran.append("interrupted")
            raise KeyboardInterrupt
        ran.append(settings)
        return {"loss": settings["rate"] * settings["batch"]}

    with pytest.raises(KeyboardInterrupt):
        grid.run_grid(tmp_path, {"steps": 3}, GRID, run)
    rows = grid.run_grid(tmp_path, {"steps": 3}, GRID, run)
    assert ran == [*GRID[:2], "interrupted", *GRID[2:]]
    assert [row["loss"] for row in rows] == pytest.approx([0.8, 8, 1.6, 16])
    output = capsys.readouterr().out
    assert "resuming: 2 of 4 runs are done" in output
    assert "4/4  rate 1  batch 16  loss 16" in output


def test_the_workdir_of_another_study_is_refused(tmp_path: Path) -> None:
    grid.run_grid(tmp_path, {"steps": 3}, GRID[:1], lambda _: {})
    with pytest.raises(InputError, match="steps 3, now 4: use another directory"):
        grid.run_grid(tmp_path, {"steps": 4}, GRID[:1], lambda _: {})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used as a workdir: Not a directory"):
        grid.run_grid(tmp_path / "file" / "below", {}, GRID[:1], lambda _: {})


def test_figures_that_are_not_finite_are_stored_as_null(tmp_path: Path) -> None:
    rows = grid.run_grid(tmp_path, {}, GRID[:1], lambda _: {"loss": float("nan"), "curve": [1.0]})
    (file,) = tmp_path.glob("runs/*.json")
    assert json.loads(file.read_text()) == rows[0]
    assert (rows[0]["loss"], rows[0]["curve"]) == (None, [1.0])


def test_two_equal_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two members of the grid are equal"):
        grid.run_grid(tmp_path, {}, [GRID[0], GRID[0]], lambda _: {})


def test_an_interrupted_chunk_resumes_with_the_runs_that_it_lacks(tmp_path: Path) -> None:
    made: list[list[Any]] = []

    def run(some: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        made.append([settings["rate"] for settings in some])
        return [{"loss": settings["rate"]} for settings in some]

    grid.run_chunks(tmp_path, {}, [GRID[:1]], run)
    rows = grid.run_chunks(tmp_path, {}, [GRID[:2], GRID[2:]], run)
    assert made == [[0.1], [1.0], [0.1, 1.0]]
    assert [row["loss"] for row in rows] == [0.1, 1.0, 0.1, 1.0]
