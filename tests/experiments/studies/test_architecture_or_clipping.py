from pathlib import Path

import pytest

import nfnets_jax
from experiments.pure_run import Run, Task
from experiments.studies import architecture_or_clipping as study
from experiments.studies.architecture_or_clipping import COMBINATIONS, Factors
from experiments.studies.tuned_training import TunedRuns
from nfnets_jax.models.counting import summarize


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_all_networks_have_about_as_many_multiply_adds(budget: str) -> None:
    arms = {factors: study.arms(budget)[factors.name] for factors in COMBINATIONS}
    # A batch-normalized network has the convolutions of its normalizer-free twin.
    kinds = {factors.nfnet: arm for factors, arm in arms.items() if factors.normalizer_free}
    models = [nfnets_jax.create_model(a.model, 10, **a.overrides) for a in kinds.values()]
    work = [summarize(model, 32).work.multiply_adds for model in models]
    assert len(work) == 2
    assert max(work) < 1.05 * min(work)


def test_every_combination_is_trained_as_its_name_says(
    tmp_path: Path, trained: list[tuple[Task, Run, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(study.BUDGETS, "cpu", study.BUDGETS["smoke"])
    study.study(tmp_path, "cpu", None)
    made = {
        Factors(
            task.model.name == "nfnet_tiny",
            run.clipping > 0,
            len(task.model.config.spatial) == 2,
            task.augmentation.mixup_alpha > 0,
        )
        for task, run, _ in trained
    }
    assert made == set(COMBINATIONS)


def test_the_smoke_study_has_no_effect_of_augmentation(
    tmp_path: Path, trained: list[tuple[Task, Run, int]]
) -> None:
    effects, accuracies = study.study(tmp_path, "smoke", None).tables
    assert "| normalizer-free, less batch norm |" in effects
    assert "RandAugment" not in effects + accuracies


@pytest.mark.slow
def test_the_smoke_study_trains_half_of_the_combinations(tmp_path: Path) -> None:
    found = study.study(tmp_path, "smoke", None)
    assert len(found.rows) == len(COMBINATIONS) / 2
    assert all(0 <= row["top1"] <= 1 for row in found.rows)


def test_effects_are_the_differences_that_factors_make() -> None:
    gains = {"normalizer_free": 0.02, "agc": 0.01, "nfnet": 0.05, "augmented": -0.03}

    def top1(factors: Factors, seed: int) -> float:
        added = sum(gain for name, gain in gains.items() if getattr(factors, name))
        # AGC gains more in normalizer-free networks.
        return 0.5 + added + 0.04 * (factors.agc and factors.normalizer_free) + 0.001 * seed

    rows = [
        {"arm": factors.name, "batch_size": 64, "top1": top1(factors, seed)}
        for factors in COMBINATIONS
        for seed in range(3)
    ]
    found = study.effects(TunedRuns([], rows, {}))
    estimates = {name: effect.estimate for name, effect in found.items()}
    assert estimates["NFNet, less SE-ResNeXt-D"] == pytest.approx(0.05)
    assert estimates["RandAugment and mixing, less shifts and flips"] == pytest.approx(-0.03)
    assert estimates["AGC, less no AGC"] == pytest.approx(0.03)
    assert estimates["AGC, less no AGC: normalizer-free"] == pytest.approx(0.05)
    assert estimates["AGC, less no AGC: batch norm"] == pytest.approx(0.01)
    effect = found["AGC, less no AGC"]
    assert 0.029 < effect.low < effect.estimate < effect.high < 0.031
