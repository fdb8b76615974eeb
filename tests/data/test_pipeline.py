import contextlib

import grain
import numpy as np
import pytest

from nfnets_jax.data import pipeline
from nfnets_jax.data.sources import ArraySource
from nfnets_jax.data.transforms import EvalTransform, TrainTransform

TRAIN = TrainTransform(size=8, crop="pad", padding=1, flip=True)
EVAL = EvalTransform(size=8, margin=0)


def numbered(length: int) -> ArraySource:
    """Records whose label is their position."""
    images = np.random.default_rng(0).integers(0, 256, (length, 8, 8, 1), np.uint8)
    return ArraySource(images, np.arange(length))


def labels(batches: grain.MapDataset, count: int) -> np.ndarray:
    return np.concatenate([batches[i]["label"] for i in range(count)])


def test_an_epoch_holds_every_record_once_and_no_two_are_alike() -> None:
    batches = pipeline.train_batches(numbered(30), TRAIN, 10, seed=0)
    epochs = labels(batches, 6).reshape(2, 30)
    for epoch in epochs:
        assert sorted(epoch) == list(range(30))
    assert list(epochs[0]) != list(epochs[1]) != list(range(30))


def test_records_are_transformed_anew_every_epoch() -> None:
    batches = pipeline.train_batches(numbered(8), TRAIN, 8, seed=0)
    first, second = (batches[i] for i in range(2))
    first, second = (b["image"][np.argsort(b["label"])] for b in (first, second))
    assert np.any(first != second)


def test_the_seed_decides_everything() -> None:
    def batch(seed: int) -> np.ndarray:
        return pipeline.train_batches(numbered(64), TRAIN, 16, seed)[3]["image"]

    np.testing.assert_array_equal(batch(1), batch(1))
    assert np.any(batch(1) != batch(2))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_each_batch(processes: int) -> None:
    whole = pipeline.train_batches(numbered(20), TRAIN, 12, 0)
    parts = [
        pipeline.train_batches(numbered(20), TRAIN, 12, 0, i, processes) for i in range(processes)
    ]
    for index in range(4):
        joined = np.concatenate([part[index]["image"] for part in parts])
        np.testing.assert_array_equal(joined, whole[index]["image"])


@pytest.mark.parametrize(("length", "processes"), [(20, 1), (21, 1), (3, 1), (21, 4), (3, 4)])
def test_evaluation_counts_every_record_once(length: int, processes: int) -> None:
    seen, lengths = [], set()
    for process in range(processes):
        batches = pipeline.eval_batches(numbered(length), EVAL, 8, process, processes)
        lengths.add(len(batches))
        for batch in pipeline.read_ahead(batches):
            seen += list(batch["label"][batch["mask"] == 1])
    assert sorted(seen) == list(range(length))
    assert lengths == {-(-length // 8)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_saved_position_goes_on_with_the_same_batches(workers: int) -> None:
    batches = pipeline.train_batches(numbered(20), TRAIN, 8, seed=0)
    with contextlib.closing(pipeline.read_ahead(batches, workers)) as reader:
        for _ in range(3):
            next(reader)
        position = reader.get_state()
        expected = [next(reader)["image"] for _ in range(4)]
    with contextlib.closing(pipeline.read_ahead(batches, workers)) as reader:
        reader.set_state(position)
        for images in expected:
            np.testing.assert_array_equal(next(reader)["image"], images)
    np.testing.assert_array_equal(expected[0], batches[3]["image"])
