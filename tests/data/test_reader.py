import contextlib
import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from nfnets_jax.data import worker_processes
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.pipeline import eval_batches, train_batches
from nfnets_jax.data.reader import Reader, auto_workers
from nfnets_jax.data.shared_memory import SharedArrays
from nfnets_jax.data.sources import Record
from nfnets_jax.data.transforms import CenterCrop
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


@pytest.mark.parametrize(("workers", "repeats"), [(0, 1), (1, 3), (2, 1)])
def test_a_reader_continues_from_any_position_bit_for_bit(workers: int, repeats: int) -> None:
    batches = train_batches(SOURCE, AUGMENTATION, 132, seed=0, repeats=repeats)
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


def test_threads_read_what_is_in_memory_and_processes_the_rest() -> None:
    decoded = train_batches(SOURCE, AUGMENTATION, 8, seed=0)
    assert auto_workers(decoded) == 0
    encoded = train_batches(NoImages(), AUGMENTATION, 8, seed=0)
    assert auto_workers(encoded) == max(1, len(os.sched_getaffinity(0)) - 1)


@pytest.mark.parametrize("size", [4, 64, 1024])
def test_all_threads_have_something_to_load(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough is loaded beside the batch that is waited for, and not much more."""
    monkeypatch.setattr("nfnets_jax.data.reader.cores", lambda: 16)
    batches = train_batches(SOURCE, Augmentation(8), size, seed=0)
    with contextlib.closing(Reader(batches)) as reader:
        parts = max(1, size // 64)
        assert 16 <= (reader._workers.ahead - 1) * parts < 16 + parts


@pytest.mark.parametrize("on_device", [False, True])
def test_a_batch_stays_as_it_is_while_anyone_holds_it(on_device: bool) -> None:
    """On a CPU, JAX takes a batch's memory itself for an array; it must not be written again."""
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)

    def prepare(batch: Any) -> Any:
        return jax.device_put(batch["image"]) if on_device else batch["image"][8:40, ::2]

    with contextlib.closing(Reader(batches, 0, 2, prepare=prepare)) as reader:
        held = [next(reader) for _ in range(20)]
    for index, images in enumerate(held):
        expected = batches[index]["image"]
        np.testing.assert_array_equal(images, expected if on_device else expected[8:40, ::2])


def test_memory_is_used_again_once_nobody_holds_a_batch() -> None:
    arrays = SharedArrays((2, 3))
    _, first = arrays.lend()
    number, second = arrays.lend()
    assert not np.shares_memory(first, second)
    address, view = second.ctypes.data, second[:, 1:][0]
    del second
    _, third = arrays.lend()
    assert third.ctypes.data != address
    del view
    again, fourth = arrays.lend()
    assert (again, fourth.ctypes.data) == (number, address)


def test_a_view_outlives_the_object_that_lent_it() -> None:
    arrays = SharedArrays((5000,))
    _, array = arrays.lend()
    array[:] = 7
    view = array[4000:]
    del arrays, array
    assert np.unique(view).tolist() == [7]


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
        pytest.raises(InputError, match="100 images in a row cannot be read, the last: file"),
        contextlib.closing(Reader(batches, 0, workers)) as reader,
    ):
        next(reader)


class Moved(NoImages):
    """Records of which all but the first have been moved away."""

    def __getitem__(self, index: int) -> Record:
        if index:
            raise InputError(f"no record {index}")
        return SOURCE[0]


def test_an_error_in_a_worker_process_ends_the_reading() -> None:
    batches = eval_batches(Moved(), CenterCrop(8), 3, batch_size=2)
    with (
        contextlib.closing(Reader(batches, 0, 1)) as reader,
        pytest.raises(InputError, match="^no record 1$"),
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


def test_a_frozen_worker_is_replaced_and_no_batch_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_processes, "_PATIENCE", 3)
    monkeypatch.setattr(worker_processes, "_TICK", 0.1)
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)
    warnings: list[str] = []
    with contextlib.closing(Reader(batches, 0, 1, warn=warnings.append)) as reader:
        next(reader)
        [worker, *_] = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGSTOP)
        for index in range(1, 12):
            np.testing.assert_array_equal(next(reader)["image"], batches[index]["image"])
    assert f"worker process {worker.pid} that reads images has not moved" in warnings[0]
    assert warnings[1].endswith("replacing the workers")


def test_a_closed_reader_leaves_no_process_and_no_memory() -> None:
    """A frozen worker process does not delay it."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)
    with contextlib.closing(Reader(batches, 0, 1)) as reader:
        batch = next(reader)
        [worker, *_] = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGSTOP)
    assert not multiprocessing.active_children()
    del reader
    assert "memfd:images" in maps.read_text()
    del batch
    gc.collect()
    assert "memfd:images" not in maps.read_text()


PROGRAM = """
import os, signal, sys
import numpy as np
from nfnets_jax.data import worker_processes
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.pipeline import eval_batches, train_batches
from nfnets_jax.data.reader import Reader
from tests.data.fake_sources import numbered
import multiprocessing

if __name__ == "__main__":
    batches = train_batches(numbered(50, size=9), Augmentation(8), 64, seed=0)
    reader = Reader(batches, 0, 2)
    next(reader)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    # A shell that starts the tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    while True:
        next(reader)
"""


def is_running(pid: int) -> bool:
    """Returns whether a process has not ended; in a container nobody may ask how it ended."""
    file = Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_nothing_is_left_however_a_program_ends(tmp_path: Path, signal_name: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), signal_name],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    workers = [int(number) for number in done.stdout.split()]
    assert workers
    assert "leaked" not in done.stderr
    # The pipes of the program are closed once its workers have ended, too.
    assert not [pid for pid in workers if is_running(pid)]


def test_workers_that_keep_dying_end_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)

    class Dying:
        def __next__(self) -> None:
            raise BrokenProcessPool

    monkeypatch.setattr(Reader, "_read_ahead", lambda self, start: Dying())
    with pytest.raises(WorkerError, match="keep being killed.*use fewer of them"):
        next(Reader(batches, 0, 1, warn=lambda line: None))


def test_threads_read_where_there_is_no_room_for_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SpawnContext, "Semaphore", full)
    monkeypatch.setattr(SpawnContext, "BoundedSemaphore", full)
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)
    warnings: list[str] = []
    with contextlib.closing(Reader(batches, 0, 2, warn=warnings.append)) as reader:
        for index in range(3):
            np.testing.assert_array_equal(next(reader)["image"], batches[index]["image"])
    assert warnings == [
        "no room for the locks of worker processes, No space left on device: docker run "
        "--shm-size=64m makes room in /dev/shm; threads read images in their place"
    ]


def test_images_take_no_room_in_dev_shm() -> None:
    """A container has 64 MB there unless it is told otherwise; only locks lie in it."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc")
    batches = train_batches(numbered(4, size=64), Augmentation(64, "pad"), 512, seed=0)
    with contextlib.closing(Reader(batches, 0, 1)) as reader:
        held = next(reader)["image"]
        [worker, *_] = multiprocessing.active_children()
        # Not the folder itself, in which other programs have files.
        for process in ("self", worker.pid):
            lines = Path(f"/proc/{process}/maps").read_text().splitlines()
            ends = [line.split()[0].split("-") for line in lines if "/dev/shm/" in line]
            assert sum(int(end, 16) - int(start, 16) for start, end in ends) < 10**5 < held.nbytes
            assert any("memfd:images" in line for line in lines)


def test_other_errors_of_the_system_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "_read_ahead", lambda self, start: map(open, ["/no/such/file"]))
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)
    with pytest.raises(FileNotFoundError):
        next(Reader(batches, 0, 1))
