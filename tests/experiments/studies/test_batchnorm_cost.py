"""The study at its smallest: what it takes for granted, and its report."""

import sys
from pathlib import Path

import pytest

from experiments.studies import batchnorm_cost


@pytest.mark.slow
def test_examples_depend_on_each_other_by_normalization_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["batchnorm_cost", f"--workdir={tmp_path}"])
    batchnorm_cost.main()
    monkeypatch.setattr(batchnorm_cost, "measure", None)  # All is there: nothing runs again.
    batchnorm_cost.main()
    (line,) = (tmp_path / "results.csv").read_text().splitlines()[1:]
    names = (tmp_path / "results.csv").read_text().splitlines()[0].split(",")
    row = dict(zip(names, line.split(","), strict=True))
    assert float(row["normalized change"]) > 0.01
    assert float(row["left out change"]) < 1e-4
    assert float(row["normalizer-free change"]) < 1e-4
    assert float(row["left out bytes"]) < float(row["normalized bytes"])
    assert (tmp_path / "batchnorm_cost.png").read_bytes().startswith(b"\x89PNG")
    assert "| resnet26_small | normalized |" in (tmp_path / "report.md").read_text()
