import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import nfnets_jax
from experiments.studies import architecture_or_clipping as study
from experiments.studies import results
from nfnets_jax.models.counting import summarize


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_all_networks_have_about_as_many_multiply_adds(budget: str) -> None:
    networks = study.networks(budget).values()
    overrides = {network.model: network.overrides for network in networks}
    assert (len(networks), len(overrides)) == (5, 3)  # Clipping changes no network.
    models = [nfnets_jax.create_model(name, 10, **some) for name, some in overrides.items()]
    work = [summarize(model, 32).work.multiply_adds for model in models]
    assert max(work) < 1.05 * min(work)


@pytest.mark.slow
def test_the_smoke_study_trains_every_network(tmp_path: Path) -> None:
    results.write(tmp_path, "command", study.study(tmp_path, "smoke", None))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    expected = {*study.networks("smoke"), *study.thresholds("smoke")}
    assert {row["network"] for row in rows} == expected
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {name} |" in table for name in expected)


def test_a_run_that_belongs_to_both_parts_is_made_once(
    tmp_path: Path, trained: list[ConfigDict]
) -> None:
    found = study.study(tmp_path, "smoke", None)
    assert [(row["network"], row["seed"]) for row in found.rows] == [
        ("SE-ResNeXt-D, batch-normalized", 0),
        ("SE-ResNeXt-D", 0),
        ("SE-ResNeXt-D, AGC 0.01", 0),
        ("NFNet", 0),
        ("NFNet, AGC 0.01", 0),
        ("SE-ResNeXt-D, AGC 0.04", 0),
        ("NFNet, AGC 0.04", 0),
    ]
    assert [config.optimizer.clipping for config in trained] == [0, 0, 0.01, 0, 0.01, 0.04, 0.04]
    both, thresholds = found.tables
    assert both.count("\n| ") == 2 + 5
    assert thresholds.count("\n| ") == 2 + 4
