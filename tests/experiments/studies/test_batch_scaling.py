import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import nfnets_jax
from experiments.studies import batch_scaling, results
from experiments.studies.tuned_training import Network
from nfnets_jax.models import counting


@pytest.mark.slow
def test_the_smoke_study_trains_every_network_at_every_batch_size(tmp_path: Path) -> None:
    results.write(tmp_path, "command", batch_scaling.study(tmp_path, "smoke", None))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["network"], row["batch_size"]) for row in rows] == [
        (name, size) for name in batch_scaling.networks("smoke") for size in (32, 128)
    ]
    assert all(0 <= row["top1"] <= 1 for row in rows)
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {name} |" in table for name in batch_scaling.networks("smoke"))


def test_only_one_network_of_three_clips_its_gradients(
    tmp_path: Path, trained: list[ConfigDict]
) -> None:
    found = batch_scaling.study(tmp_path, "smoke", None)
    settings = [(c.model.name, c.optimizer.clipping, c.batch_size) for c in trained]
    assert settings == [
        (name, clipping, size)
        for name, clipping in (
            ("resnet26_small", 0.0),
            ("nf_resnet26_small", 0.0),
            ("nf_resnet26_small", 0.01),
        )
        for size in (32, 128)
    ]
    assert found.conditions["seeds"] == 1
    assert list(found.pictures) == ["accuracy"]


@pytest.mark.parametrize("budget", batch_scaling.BUDGETS)
def test_all_networks_have_one_shape(budget: str) -> None:
    def work(network: Network) -> counting.Work:
        model = nfnets_jax.create_model(network.model, 10, **network.overrides)
        return counting.summarize(model, 32).work

    assert len(set(map(work, batch_scaling.networks(budget).values()))) == 1
