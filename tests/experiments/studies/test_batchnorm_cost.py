from pathlib import Path

import pytest

from experiments.studies import batchnorm_cost, results
from experiments.studies.batchnorm_cost import FREE, NORMALIZED, REDUCED


def test_normalization_alone_couples_the_images_of_a_batch() -> None:
    assert batchnorm_cost.coupling("resnet26_small", size=8) > 0.01
    with batchnorm_cost._without_statistics():
        assert batchnorm_cost.coupling("resnet26_small", size=8) < 1e-4
    assert batchnorm_cost.coupling("skipinit_resnet26_small", size=8) < 1e-4


@pytest.mark.slow
def test_the_smoke_study_measures_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = batchnorm_cost.study
    (row,) = study(tmp_path, "smoke", None).rows
    monkeypatch.setattr(batchnorm_cost, "measure", None)  # All is measured: nothing runs again.
    found = study(tmp_path, "smoke", None)
    assert found.rows == [row]
    assert row[f"{NORMALIZED} coupling"] > 0.01
    assert row[f"{REDUCED} coupling"] < 1e-4
    assert row[f"{FREE} coupling"] < 1e-4
    assert row[f"{REDUCED} bytes"] < row[f"{NORMALIZED} bytes"]
    assert row["share_low"] <= row["share"] <= row["share_high"] < 1
    results.write(tmp_path, "command", found)
    assert "| resnet26_small | normalized |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "batchnorm_cost.png").read_bytes().startswith(b"\x89PNG")
