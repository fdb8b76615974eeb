import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from experiments.studies import detection
from experiments.studies.detection import Budget
from nfnets_jax.models.registry import create_model
from nfnets_jax.training import loop, schema

BEST_RATE = 1.6


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[ConfigDict]:
    """Records configurations in place of training; AP falls with the distance from BEST_RATE."""
    found: list[ConfigDict] = []

    def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
        assert schema.problems(config) == []
        found.append(config.copy_and_resolve_references())
        distance = abs(math.log(config.optimizer.base_learning_rate / BEST_RATE))
        return {"test": {"AP": 0.5 - 0.1 * distance + 0.01 * config.seed, "AP50": 0.9}}

    monkeypatch.setattr(loop, "train", train)
    return found


DESIGN = Budget(64, (2, 4), (20, 40), (0.8, 1.6, 3.2), 3, 16, 2, detection.BUDGETS["smoke"].shapes)


def test_each_point_is_tuned_apart_from_what_it_is_tested_on(
    trained: list[ConfigDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(detection.BUDGETS, "smoke", DESIGN)
    found = detection.study(tmp_path, "smoke", None)
    points = detection.points(DESIGN)
    assert len({json.dumps(point) for point in points}) == len(points) == 11
    detectors = [config for config in trained if config.task.name == "detection"]
    assert len(detectors) == len(points) * (len(DESIGN.rates) + DESIGN.seeds)
    for config in detectors:
        tuned = config.data.holdout > 0
        assert tuned or config.optimizer.base_learning_rate == BEST_RATE
        assert config.data.holdout in (0, config.task.settings.scenes // 10)
        assert config.batch_size * config.num_steps == DESIGN.images
        assert not config.task.settings.frozen_statistics or config.model.name == "resnet26_small"
        scratch = not config.init.weights
        assert scratch or config.init.weights.endswith(f"pretrained/{config.model.name}")
    for way in ("from scratch", "frozen", "on the backbone"):
        assert any(way in str(row["way"]) for row in found.rows)
    # Three seeds, 0.5, 0.51 and 0.52: a standard error of 0.577 points, and t of 4.303.
    assert "| 51 | 2.484 | 3 |" in found.tables[0]


def test_pretraining_and_detector_have_one_backbone() -> None:
    """Otherwise the parameters of one would not fit the other."""
    for budget in detection.BUDGETS.values():
        for network, shape in budget.shapes.items():
            strides = [info.stride for info in create_model(network, 0, **shape).feature_info]
            assert 2 in strides


def test_the_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    half = 3.1824463 * statistics.stdev(values) / 2  # Its table has 3.182 for three degrees.
    assert detection.interval(values) == pytest.approx(half, rel=1e-6)
    assert detection.interval([1.0]) is None


@pytest.mark.slow
def test_the_smoke_study_runs(tmp_path: Path) -> None:
    found = detection.study(tmp_path, "smoke", None)
    assert len(found.rows) == len(detection.points(detection.BUDGETS["smoke"]))
    assert all(0 <= row["AP"] <= 1 for row in found.rows)
