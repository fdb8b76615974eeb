from pathlib import Path

import pytest

from experiments.pure_run import Run, Task
from experiments.studies import grid, tuned_training
from experiments.studies.tuned_training import Arm, Budget

POINT = {"arm": "a", "batch_size": 64}


def row(rate: float, clipping: float, top1: float | None) -> grid.Row:
    return {**POINT, "learning_rate": rate, "clipping": clipping, "top1": top1}


def test_the_best_pair_is_that_of_the_most_accurate_run() -> None:
    rows = [row(0.1, 0.02, 0.5), row(0.2, 0.04, 0.6), row(0.4, 0.02, None)]
    assert tuned_training.best_pair(rows) == (0.2, 0.04)
    assert tuned_training.best_pair([row(0.2, 0, None), row(0.1, 0, None)]) == (0.1, 0)


def test_a_pair_has_neighbours_a_factor_of_two_away() -> None:
    assert tuned_training.untried_neighbours([row(0.2, 0, 0.5)]) == [(0.4, 0), (0.1, 0)]
    clipped = [row(0.2, 0.04, 0.5), row(0.4, 0.04, 0.4)]
    assert tuned_training.untried_neighbours(clipped) == [(0.1, 0.04), (0.2, 0.08), (0.2, 0.02)]


def test_a_diverged_run_counts_as_zero() -> None:
    rows = [row(0.1, 0, 0.5), row(0.1, 0, None), {**row(0.1, 0, 0.4), "batch_size": 256}]
    runs = tuned_training.TunedRuns([], rows, {})
    assert runs.top1("a") == {64: [0.5, 0.0], 256: [0.4]}


def test_rate_and_threshold_are_tuned_and_trained_once_per_seed(
    tmp_path: Path, trained: list[tuple[Task, Run, int]]
) -> None:
    arms = {"a": Arm("nfnet_micro", "C0", (0.04,), {"width": (16, 16, 16)}, augmented=True)}
    budget = Budget(2, (128,), (0.1, 0.2), seeds=3)
    runs = tuned_training.train_tuned(tmp_path, "cpu", arms, budget, None)

    assert runs.tuned("a", 128) == (0.8, 0.02)
    assert not runs.is_at_edge("a", 128)
    tuning, final = trained[: len(runs.tuning)], trained[len(runs.tuning) :]
    assert {tested for _, _, tested in tuning} == {143}
    assert [(run.seed, tested) for _, run, tested in final] == [(0, 360), (1, 360), (2, 360)]
    assert {run.learning_rate for _, run, _ in final} == {0.4}  # Half of that for a batch of 256.
    task = final[0][0]
    assert task.steps == round(2 * 1437 / 128)
    assert task.augmentation.mixup_alpha > 0
    assert not task.augmentation.flip  # A mirrored digit is another one.
    table = tuned_training.accuracy_table(runs, arms)
    assert "| a | 128 | 0.8 | 0.02 | 89.0% (88.0% to 90.0%) |" in table


def test_a_search_that_ends_early_says_so(
    tmp_path: Path, trained: list[tuple[Task, Run, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned_training, "_ROUNDS", 2)
    arms = {"a": Arm("nfnet_micro", "C0")}
    runs = tuned_training.train_tuned(tmp_path, "cpu", arms, Budget(1, (64,), (0.1,), 1), None)
    assert runs.is_at_edge("a", 64)
    assert "| none; at the edge |" in tuned_training.accuracy_table(runs, arms)


def test_an_untuned_budget_uses_the_first_pair(
    tmp_path: Path, trained: list[tuple[Task, Run, int]]
) -> None:
    arms = {"a": Arm("nfnet_micro", "C0", (0.04, 0.08))}
    budget = Budget(2, (256,), (0.2, 0.4), seeds=1, tunes=False)
    runs = tuned_training.train_tuned(tmp_path, "smoke", arms, budget, None)
    assert (runs.tuning, len(runs.final)) == ([], 1)
    assert (trained[0][1].learning_rate, trained[0][1].clipping) == (0.2, 0.04)
