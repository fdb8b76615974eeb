import os
from pathlib import Path

import numpy as np
import pytest

from experiments.studies import batchnorm_cost, results
from experiments.studies.batchnorm_cost import FREE, NORMALIZED, REDUCED
from nfnets_jax.errors import InputError


def test_normalization_alone_couples_the_images_of_a_batch() -> None:
    assert batchnorm_cost.coupling("resnet26_small", size=8) > 0.01
    with batchnorm_cost._without_statistics():
        assert batchnorm_cost.coupling("resnet26_small", size=8) < 1e-4
    assert batchnorm_cost.coupling("skipinit_resnet26_small", size=8) < 1e-4


def test_a_ratio_is_of_the_rounds_and_not_of_the_medians() -> None:
    # A machine that slows down by half in every other round: the ratio is 0.9 throughout.
    normalized = np.tile([1.0, 2.0], 10)
    row = {f"{NORMALIZED} seconds": normalized, f"{FREE} seconds": 0.9 * normalized}
    assert batchnorm_cost.ratio(row, FREE, NORMALIZED) == pytest.approx((0.9, 0.9, 0.9))
    noise = np.random.default_rng(0).normal(1, 0.1, 20)
    row[f"{FREE} seconds"] = row[f"{FREE} seconds"] * noise
    median, low, high = batchnorm_cost.ratio(row, FREE, NORMALIZED)
    assert low < 0.9 < high and low < median < high
    assert high - low < 0.2


def test_more_cores_than_there_are_cannot_be_had() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(InputError, match=f"takes 4096 cores; this process may use {len(before)}"):
        batchnorm_cost.keep_to_cores(4096)
    assert os.sched_getaffinity(0) == before


@pytest.mark.slow
def test_the_smoke_study_measures_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchnorm_cost, "keep_to_cores", lambda count: None)
    study = batchnorm_cost.study
    (row,) = study(tmp_path, "smoke", None).rows
    monkeypatch.setattr(batchnorm_cost, "measure", None)  # All is measured: nothing runs again.
    found = study(tmp_path, "smoke", None)
    assert found.rows == [row]
    assert row[f"{NORMALIZED} coupling"] > 0.01
    assert row[f"{REDUCED} coupling"] < 1e-4
    assert row[f"{FREE} coupling"] < 1e-4
    assert row[f"{REDUCED} bytes"] < row[f"{NORMALIZED} bytes"]
    assert [len(row[f"{form} seconds"]) for form in (NORMALIZED, FREE, REDUCED)] == [2, 2, 2]
    results.write(tmp_path, "command", found)
    assert "| resnet26_small | normalized |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "batchnorm_cost.png").read_bytes().startswith(b"\x89PNG")
