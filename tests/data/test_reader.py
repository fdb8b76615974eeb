import contextlib
import multiprocessing
import os
import signal

import numpy as np
import pytest

from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.pipeline import train_batches
from nfnets_jax.data.reader import Reader
from nfnets_jax.data.sources import Record
from nfnets_jax.errors import InputError, WorkerError
from tests.data.fake_sources import numbered

SOURCE = numbered(50, size=9)
AUGMENTATION = Augmentation(
    8,
    flip=True,
    mixing=Mixing(0.2, True),
    randaugment_layers=2,
    randaugment_magnitude=5,
)


class NoImages:
    """Records that are not images."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Record:
        return Record(image=b"", label=0, name=f"file {index}")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_reader_continues_from_any_position_bit_for_bit(workers: int) -> None:
    batches = train_batches(SOURCE, AUGMENTATION, 132, seed=0)
    with contextlib.closing(Reader(batches, 0, workers)) as reader:
        for index in range(3):
            np.testing.assert_array_equal(next(reader)["image"], batches[index]["image"])
        position = reader.position
    assert position == 3
    with contextlib.closing(Reader(batches, position, workers)) as reader:
        for index in range(3, 6):
            batch = next(reader)
            for name, array in batches[index].items():
                np.testing.assert_array_equal(batch[name], array)


def test_prepared_batches_keep_their_order() -> None:
    batches = train_batches(SOURCE, AUGMENTATION, 8, seed=0)
    reader = Reader(batches, prepare=lambda batch: list(batch["label"]))
    with contextlib.closing(reader):
        for index in range(10):
            assert next(reader) == list(batches[index]["label"])


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_in_loading_end_the_reading(workers: int) -> None:
    batches = train_batches(NoImages(), AUGMENTATION, 8, seed=0)
    with (
        contextlib.closing(Reader(batches, 0, workers)) as reader,
        pytest.raises(InputError, match="100 images in a row cannot be read, the last: file"),
    ):
        next(reader)


def kill_a_worker() -> None:
    [worker, *_] = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_no_batch_is_lost() -> None:
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)
    warnings: list[str] = []
    with contextlib.closing(Reader(batches, 0, 1, warn=warnings.append)) as reader:
        next(reader)
        kill_a_worker()
        for index in range(1, 12):
            np.testing.assert_array_equal(next(reader)["image"], batches[index]["image"])
    assert warnings == ["a worker process that reads images was killed; replacing the workers"]


def test_workers_that_keep_dying_end_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)

    class Dying:
        def __next__(self) -> None:
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")

        def close(self) -> None:
            pass

    monkeypatch.setattr(Reader, "_read_ahead", lambda self: Dying())
    with pytest.raises(WorkerError, match="keep being killed.*use fewer of them"):
        next(Reader(batches, 0, 1, warn=lambda line: None))
