import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import population
from experiments.population import Outcome
from experiments.pure_run import Run, Task
from experiments.search.runs import Member, Network, Trainer, resized
from nfnets_jax.data.sources import ArraySource, Dataset
from nfnets_jax.models.nfnet import VARIANTS

CONFIG = dataclasses.replace(VARIANTS["nfnet_micro"], train_size=8)
FIRST, SECOND, THIRD = (Network(name, CONFIG, 8) for name in ("first", "second", "third"))


def dataset(count: int = 40) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
    source = ArraySource(images, np.arange(count) % 2)
    return Dataset(source, source, ("a", "b"), 3, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def populations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int], int]]:
    """Records the network, the seeds and the number of devices of each population."""
    made: list[tuple[str, list[int], int]] = []

    def train(
        task: Task, dataset: Dataset, runs: Sequence[Run], devices: Sequence[jax.Device]
    ) -> list[Outcome]:
        made.append((task.model.name, [run.seed for run in runs], len(devices)))
        losses = np.ones(task.steps, np.float32)
        level = {"first": 0.1, "second": 0.2, "third": 0.3}[task.model.name]
        return [Outcome(losses, level + 0.01 * run.seed, None, 1.0) for run in runs]

    monkeypatch.setattr(population, "train", train)
    return made


def trainer(workdir: Path) -> Trainer:
    return Trainer(workdir, {}, dataset(), batch_size=4, flips=True, epochs=10)


def test_runs_of_a_network_are_a_population_and_others_go_side_by_side(
    tmp_path: Path, populations: list[tuple[str, list[int], int]]
) -> None:
    members = [Member(SECOND, 0.1), *(Member(FIRST, 0.1, 0.0, s) for s in (0, 1)), Member(THIRD, 1)]
    rows = trainer(tmp_path).train("stage", members, 1)
    assert [row["network"] for row in rows] == ["second", "first", "first", "third"]
    assert [row["top1"] for row in rows] == pytest.approx([0.2, 0.1, 0.11, 0.3])
    every = jax.local_device_count()
    assert sorted(populations) == [("first", [0, 1], every), ("second", [0], 1), ("third", [0], 1)]


def test_a_search_resumes_with_what_is_missing(
    tmp_path: Path, populations: list[tuple[str, list[int], int]]
) -> None:
    trainer(tmp_path).train("stage", [Member(FIRST, 0.1)], 1)
    again = trainer(tmp_path)
    again.train("stage", [Member(FIRST, 0.1), Member(FIRST, 0.2)], 1)
    assert [seeds for _, seeds, _ in populations] == [[0], [0]]
    assert [row["learning_rate"] for row in again.rows] == [0.1, 0.2]


def test_held_out_images_are_training_images(tmp_path: Path) -> None:
    search = trainer(tmp_path)
    assert search.task(FIRST, 1).steps == 9  # 36 of 40 images.
    assert search.task(FIRST, 1, tests=True).steps == 10


@pytest.mark.parametrize("size", [8, 12, 20])
def test_resized_images_show_the_same(size: int) -> None:
    y, x = np.mgrid[:16, :16] / 15
    smooth = np.stack([255 * x, 255 * y, 100 + 0 * x], axis=-1).astype(np.uint8)
    source = ArraySource(np.stack([smooth] * 2), np.zeros(2, np.int64))
    found = resized(Dataset(source, None, ("a",), 3, (0.5,) * 3, (0.25,) * 3), size)
    assert isinstance(found.train, ArraySource)
    images = found.train.images.astype(float)
    assert images.shape == (2, size, size, 3)
    centers = 255 * np.clip(((np.arange(size) + 0.5) * 16 / size - 0.5) / 15, 0, 1)
    np.testing.assert_allclose(images[0, size // 2, 2:-2, 0], centers[2:-2], atol=6)
    np.testing.assert_allclose(images[1, 2:-2, size // 2, 1], centers[2:-2], atol=6)
    assert (images[..., 2] == 100).all()
