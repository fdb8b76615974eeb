import csv
from pathlib import Path

import pytest

import nfnets_jax
from experiments.studies import batch_scaling, contest
from nfnets_jax.models import counting


@pytest.mark.slow
def test_the_study_learns_at_each_batch_size_and_reports(tmp_path: Path) -> None:
    batch_scaling.study(tmp_path, "smoke", None)
    effort = batch_scaling.EFFORTS["smoke"]
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = 3 * len(effort.batch_sizes)
    tries = [row for row in rows if row["held_out"] != "0"]
    assert len(tries) == points * len(effort.learning_rates)
    assert len(rows) - len(tries) == points * effort.seeds
    report = (tmp_path / "report.md").read_text()
    assert all(f"| {name} |" in report for name in batch_scaling.contenders("smoke"))
    assert "figure 2" in report
    assert (tmp_path / "accuracy.png").stat().st_size > 0


def test_a_batch_size_is_mastered_if_all_smaller_ones_are_too() -> None:
    assert batch_scaling.mastered({64: [0.8, 0.9], 256: [0.84], 1024: [0.5]}) == 256
    assert batch_scaling.mastered({64: [0.8], 256: [0.5], 1024: [0.8]}) == 64
    # A small batch that did badly is no reason to stop at.
    assert batch_scaling.mastered({64: [0.5], 256: [0.8], 1024: [0.79]}) == 1024


@pytest.mark.parametrize("budget", batch_scaling.EFFORTS)
def test_contenders_are_of_one_shape(budget: str) -> None:
    def work(contender: contest.Contender) -> counting.Work:
        model = nfnets_jax.create_model(contender.model, 10, **contender.overrides)
        return counting.summarize(model, 32).work

    assert len(set(map(work, batch_scaling.contenders(budget).values()))) == 1
