import csv
from pathlib import Path

import pytest

import nfnets_jax
from experiments.studies import architecture_or_clipping as study
from nfnets_jax.models.counting import summarize


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_all_networks_have_about_as_many_multiply_adds(budget: str) -> None:
    contenders = study.contenders(budget).values()
    overrides = {contender.model: contender.overrides for contender in contenders}
    assert (len(contenders), len(overrides)) == (5, 3)  # Clipping changes no network.
    models = [nfnets_jax.create_model(name, 10, **some) for name, some in overrides.items()]
    work = [summarize(model, 32).work.multiply_adds for model in models]
    assert max(work) < 1.05 * min(work)


@pytest.mark.slow
def test_the_study_learns_with_each_and_reports(tmp_path: Path) -> None:
    study.study(tmp_path, "smoke", None)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    finals = [row for row in rows if row["held_out"] == "0"]
    thresholds = set(study.contenders("smoke", study.THRESHOLDS["smoke"]))
    assert {row["contender"] for row in finals} == {*study.contenders("smoke"), *thresholds}
    report = (tmp_path / "report.md").read_text()
    assert "Batch 32: clipping brings" in report
    assert all(f"| {name} |" in report for name in thresholds)
