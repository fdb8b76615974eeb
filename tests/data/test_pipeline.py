import contextlib
import multiprocessing
import os
import signal

import numpy as np
import pytest

from nfnets_jax.data import pipeline
from nfnets_jax.data.examples import Augmentation, CenterCrop
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.sources import ArraySource, Record
from nfnets_jax.errors import InputError, WorkerError

AUGMENTATION = Augmentation(
    8, "inception", flip=True, mixing=Mixing(0.2, True), layers=2, magnitude=5
)


def numbered(length: int) -> ArraySource:
    """Records whose label is their position."""
    images = np.random.default_rng(0).integers(0, 256, (length, 9, 9, 3), np.uint8)
    return ArraySource(images, np.arange(length))


class Nothing:
    """Records that are no images."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Record:
        return Record(image=b"", label=0, name=f"file {index}")


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_each_batch(processes: int) -> None:
    """Together they see what one sees: every record once an epoch, whatever divides what."""
    whole = pipeline.train_batches(numbered(37), AUGMENTATION, 48, 0)
    parts = [
        pipeline.train_batches(numbered(37), AUGMENTATION, 48, 0, i, processes)
        for i in range(processes)
    ]
    labels = []
    for index in range(37):
        batches = [part[index] for part in parts]
        joined = np.concatenate([batch["image"] for batch in batches])
        np.testing.assert_array_equal(joined, whole[index]["image"])
        labels += [label for batch in batches for label in batch["label"]]
    for epoch in np.reshape(labels, (48, 37)):
        assert sorted(epoch) == list(range(37))


@pytest.mark.parametrize(("length", "processes"), [(20, 1), (21, 2), (22, 3), (21, 8), (3, 8)])
def test_evaluation_counts_every_record_once(length: int, processes: int) -> None:
    seen, counts = [], set()
    for process in range(processes):
        batches = pipeline.eval_batches(numbered(length), CenterCrop(8), 3, 24, process, processes)
        with contextlib.closing(pipeline.Reader(batches)) as reader:
            parts = list(reader)
        counts.add(len(parts))
        for part in parts:
            seen += list(part["label"][part["mask"] == 1])
    assert sorted(seen) == list(range(length))
    assert counts == {1}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_reader_goes_on_from_any_position_bit_for_bit(workers: int) -> None:
    """However many workers read before, and whatever the batch is cut into."""
    batches = pipeline.train_batches(numbered(50), AUGMENTATION, 132, seed=0)
    with contextlib.closing(pipeline.Reader(batches, 0, workers)) as reader:
        for index in range(3):
            np.testing.assert_array_equal(next(reader)["image"], batches[index]["image"])
        position = reader.position
    assert position == 3
    with contextlib.closing(pipeline.Reader(batches, position, workers)) as reader:
        for index in range(3, 6):
            batch = next(reader)
            for name, array in batches[index].items():
                np.testing.assert_array_equal(batch[name], array)


def test_preparing_happens_ahead_and_in_order() -> None:
    batches = pipeline.train_batches(numbered(50), AUGMENTATION, 8, seed=0)
    reader = pipeline.Reader(batches, prepare=lambda batch: list(batch["label"]))
    with contextlib.closing(reader):
        for index in range(10):
            assert next(reader) == list(batches[index]["label"])


def test_batches_that_cannot_be_mixed_in_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size 18 over 2 processes cannot be mixed in pairs"):
        pipeline.train_batches(numbered(50), AUGMENTATION, 18, 0, 0, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_hopeless_data_end_the_reading(workers: int) -> None:
    batches = pipeline.train_batches(Nothing(), AUGMENTATION, 8, seed=0)
    with (
        contextlib.closing(pipeline.Reader(batches, 0, workers)) as reader,
        pytest.raises(InputError, match="100 images in a row cannot be read, the last: file"),
    ):
        next(reader)


def kill_a_worker() -> None:
    [worker, *_] = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_no_batch_is_lost() -> None:
    batches = pipeline.train_batches(numbered(50), AUGMENTATION, 64, seed=0)
    told: list[str] = []
    with contextlib.closing(pipeline.Reader(batches, 0, 1, tell=told.append)) as reader:
        next(reader)
        kill_a_worker()
        for index in range(1, 12):
            np.testing.assert_array_equal(next(reader)["image"], batches[index]["image"])
    assert told == ["a process that reads images was killed; others take its place"]


def test_workers_that_keep_dying_end_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = pipeline.train_batches(numbered(50), AUGMENTATION, 64, seed=0)

    class Dying:
        def __next__(self) -> None:
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")

        def close(self) -> None:
            pass

    monkeypatch.setattr(pipeline.Reader, "_read_ahead", lambda self: Dying())
    with pytest.raises(WorkerError, match="killed again and again.*lower data.num_workers"):
        next(pipeline.Reader(batches, 0, 1, tell=lambda line: None))
