import sys
from pathlib import Path

import pytest

from experiments.studies import command, grid, results


def test_a_study_gets_its_options_and_its_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
        assert (workdir, budget, data_dir) == (tmp_path / "new", "cpu", Path("data"))
        return results.Results({}, grid.run_grid(workdir, {}, [{"a": 1}], lambda _: {}), [], {})

    flags = [f"--workdir={tmp_path / 'new'}", "--budget=cpu", "--data_dir=data"]
    monkeypatch.setattr(sys, "argv", ["study", *flags])
    command.run("some_study", "A study.", study)
    line = "python -m experiments.studies.some_study --budget=cpu --data_dir=TFDS_DIR"
    assert line in (tmp_path / "new" / "results.md").read_text()
