"""The whole search, with accuracies in place of training and ratios in place of times."""

import csv
import runpy
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import nfnets_jax
from experiments import population
from experiments.population import Outcome
from experiments.pure_run import Run, Task
from experiments.search import __main__ as command
from experiments.search import budgets, cost, family, study
from experiments.search.cost import Cost
from experiments.search.proxy import accept
from nfnets_jax.data.sources import ArraySource, Dataset
from nfnets_jax.errors import InputError
from nfnets_jax.models.efficientnet import EfficientNetConfig


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Records the network's name, the seed, and whether RMSProp trained it."""
    recorded: list[tuple[str, int, bool]] = []

    def train(
        task: Task, dataset: Dataset, runs: Sequence[Run], devices: Sequence[jax.Device]
    ) -> list[Outcome]:
        assert isinstance(dataset.train, ArraySource)
        assert dataset.train.images.shape[1] == task.model.config.train_size
        recorded.extend((task.model.name, run.seed, task.rmsprop) for run in runs)
        level = 0.5 + 0.3 * (zlib.crc32(task.model.name.encode()) % 100) / 100
        losses = np.ones(task.steps, np.float32)
        return [Outcome(losses, level + 0.001 * run.seed, None, 1.0) for run in runs]

    monkeypatch.setattr(population, "train", train)
    monkeypatch.setattr(study, "training_step", lambda task, channels: lambda: 1.0)
    monkeypatch.setattr(cost, "count", count)
    monkeypatch.setattr(family, "count", count)
    return recorded


def count(config: Any, channels: int = 3, classes: int = 10) -> Cost:
    """Returns numbers that grow with a network, in place of a minute's tracing of all of them."""
    area = config.train_size**2 / 16
    if isinstance(config, EfficientNetConfig):
        weights = 40_000 * config.width_factor**2 * config.depth_factor
    else:
        layers = zip(config.width, config.depth, strict=True)
        weights = sum(2 * width * width * depth for width, depth in layers)
    return Cost(int(weights), int(weights * area), int(weights**0.5 * area))


def test_a_search_goes_through_all_rounds_and_resumes(
    tmp_path: Path, trained: list[tuple[str, int, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = command.search(tmp_path, "smoke", None)
    stages = dict.fromkeys(row["stage"] for row in found.rows)
    assert next(iter(stages)) == "tuning the anchor"
    assert {"first round", "full training", "second round", "comparison", "testing"} <= set(stages)
    # Test images are read by two networks alone, in the last stage, once a seed.
    tested = [row for row in found.rows if row["images"] == "test"]
    assert {row["stage"] for row in tested} == {"testing"} == {list(stages)[-1]}
    assert len(tested) == 2 * budgets.BUDGETS["smoke"].test_seeds
    assert any(by_rmsprop for _, _, by_rmsprop in trained)
    assert set(found.pictures) == {"cloud", "distributions", "scaling"}
    with (tmp_path / "runs.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == len(found.rows)

    runpy.run_path(str(tmp_path / "nfnet_c.py"))
    assert len(nfnets_jax.list_models("nfnet_c?")) == 5

    runs = len(trained)
    again = command.search(tmp_path, "smoke", None)
    assert len(trained) == runs
    assert again.tables == found.tables


@pytest.mark.parametrize("budget", ["cpu", "gpu"])
def test_a_search_on_cifar10_needs_it(tmp_path: Path, budget: str) -> None:
    with pytest.raises(InputError, match="give TFDS's data directory"):
        command.search(tmp_path, budget, None)


def test_a_proxy_that_orders_nothing_ends_the_search(
    tmp_path: Path,
    trained: list[tuple[str, int, bool]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strict: Any = budgets.BUDGETS["smoke"]._replace(stops=True)
    monkeypatch.setattr(study, "BUDGETS", {"smoke": strict})
    monkeypatch.setattr(study, "accept", lambda short, long: accept(short, short[::-1]))
    found = command.search(tmp_path, "smoke", None)
    assert "not accepted" in capsys.readouterr().out
    assert len(found.tables) == 1
    assert "| no |" in found.tables[0]
    assert not any(row["images"] == "test" for row in found.rows)
