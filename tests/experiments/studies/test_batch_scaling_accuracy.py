from pathlib import Path

import pytest

import nfnets_jax
from experiments.pure_run import Run, Task
from experiments.studies import batch_scaling_accuracy as study
from experiments.studies.tuned_training import Arm
from nfnets_jax.models import counting


@pytest.mark.slow
def test_the_smoke_study_trains_every_network(tmp_path: Path) -> None:
    found = study.study(tmp_path, "smoke", None)
    assert [row["arm"] for row in found.rows] == list(study.arms("smoke"))
    assert all(0 <= row["top1"] <= 1 for row in found.rows)


def test_one_network_of_three_clips_its_gradients(
    tmp_path: Path, trained: list[tuple[Task, Run, int]]
) -> None:
    found = study.study(tmp_path, "smoke", None)
    assert [(task.model.name, run.clipping > 0) for task, run, _ in trained] == [
        ("nfnet_tiny_bn", False),
        ("nfnet_tiny", False),
        ("nfnet_tiny", True),
    ]
    assert "| 64 | normalizer-free, AGC, less normalizer-free |" in found.tables[1]


def test_all_networks_have_one_shape() -> None:
    def work(arm: Arm) -> int:
        model = nfnets_jax.create_model(arm.model, 10, **{**arm.overrides, "depth": (1, 2, 1)})
        return counting.summarize(model, 16).work.multiply_adds

    arms = study.arms("gpu")
    assert arms[study.FREE].overrides == arms[study.CLIPPED].overrides
    assert work(arms[study.FREE]) == work(arms[study.NORMALIZED])


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_the_network_is_deep(budget: str) -> None:
    arm = study.arms(budget)[study.FREE]
    config = nfnets_jax.create_model(arm.model, 10, **arm.overrides).config
    transitions = sum(stride > 1 for stride in config.strides)
    assert sum(config.depth) - transitions >= 18
