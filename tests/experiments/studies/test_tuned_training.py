from pathlib import Path

from ml_collections import ConfigDict

from experiments.studies import tuned_training
from experiments.studies.tuned_training import Budget, Network

POINT = {"network": "a", "batch_size": 64}


def test_the_best_learning_rate_is_that_of_the_most_accurate_run_at_the_point() -> None:
    tuning = [
        {**POINT, "learning_rate": 0.1, "top1": 0.5},
        {**POINT, "learning_rate": 0.2, "top1": 0.6},
        {**POINT, "learning_rate": 0.4, "top1": None},
        {"network": "b", "batch_size": 64, "learning_rate": 0.8, "top1": 0.9},
    ]
    assert tuned_training.best_learning_rate(tuning, POINT) == 0.2
    assert tuned_training.best_learning_rate(tuning[2:3], POINT) == 0.4


def test_the_grid_of_learning_rates_is_extended_while_the_best_is_at_an_edge() -> None:
    def next_rate(*top1: float | None) -> float | None:
        rates = (0.05, 0.2, 0.8)[: len(top1)]
        tuning = [
            {**POINT, "learning_rate": rate, "top1": value}
            for rate, value in zip(rates, top1, strict=True)
        ]
        return tuned_training.next_learning_rate(tuning, POINT)

    assert next_rate(0.3, 0.4, 0.5) == 3.2
    assert next_rate(0.5, 0.4, 0.3) == 0.0125
    assert next_rate(None, None) == 0.0125
    assert next_rate(0.3, 0.5, 0.4) is None


def test_a_diverged_run_counts_as_zero() -> None:
    rows = [
        {"network": "a", "batch_size": 64, "top1": 0.5},
        {"network": "a", "batch_size": 64, "top1": None},
        {"network": "b", "batch_size": 64, "top1": 0.9},
        {"network": "a", "batch_size": 256, "top1": 0.4},
    ]
    runs = tuned_training.TunedRuns([], rows, {})
    assert runs.top1("a") == {64: [0.5, 0.0], 256: [0.4]}


def test_the_tuned_rate_is_trained_once_per_seed(tmp_path: Path, trained: list[ConfigDict]) -> None:
    networks = {"a": Network("nfnet_micro", "C0", clipping=0.02, overrides={"width": (16,)})}
    budget = Budget(2, (128,), (0.05, 0.2), seeds=3)
    runs = tuned_training.train_tuned(tmp_path, "cpu", networks, budget, None)

    # The grid grows beyond the best rate, 0.8, by one.
    assert [row["learning_rate"] for row in runs.tuning] == [0.05, 0.2, 0.8, 3.2]
    assert runs.learning_rate("a", 128) == 0.8
    tuning, final = trained[:4], trained[4:]
    assert {config.data.holdout for config in tuning} == {143}
    assert [(config.data.holdout, config.seed) for config in final] == [(0, 0), (0, 1), (0, 2)]
    assert {config.optimizer.base_learning_rate for config in final} == {0.8}
    config = final[0]
    assert (config.model.width, config.optimizer.clipping) == ((16,), 0.02)
    assert (config.num_steps, config.micro_batch_size) == (round(2 * 1437 / 128), 64)
    table = tuned_training.accuracy_table(runs, networks)
    assert "| a | 128 | 0.8 | 90.0% | 90.0% | 90.0% | 3 |" in table


def test_a_single_learning_rate_is_not_tuned(tmp_path: Path, trained: list[ConfigDict]) -> None:
    networks = {"a": Network("nfnet_micro", "C0")}
    budget = Budget(2, (64,), (0.2,), seeds=1)
    runs = tuned_training.train_tuned(tmp_path, "smoke", networks, budget, None)
    assert (len(runs.tuning), len(runs.final), len(trained)) == (0, 1, 1)
    assert trained[0].micro_batch_size == 0
