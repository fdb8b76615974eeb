import contextlib
import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from nfnets_jax.data import shared_memory, worker_processes
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.pipeline import train_batches
from nfnets_jax.data.reader import Reader, auto_workers
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


def test_threads_have_as_much_to_read_ahead_as_there_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nfnets_jax.data.reader.cores", lambda: 16)
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)
    with contextlib.closing(Reader(batches)) as threads:
        np.testing.assert_array_equal(next(threads)["image"], batches[0]["image"])
    assert "smaller than num_threads" not in caplog.text


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


PROGRAM = """
import os, signal, sys
import numpy as np
from nfnets_jax.data import worker_processes
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.pipeline import train_batches
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
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")

        def close(self) -> None:
            pass

    monkeypatch.setattr(Reader, "_read_ahead", lambda self: Dying())
    with pytest.raises(WorkerError, match="keep being killed.*use fewer of them"):
        next(Reader(batches, 0, 1, warn=lambda line: None))


def shared_memory_of(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Lets the system say that 64 MiB of shared memory have this many bytes free."""
    said = types.SimpleNamespace(f_frsize=4096, f_blocks=2**14, f_bavail=free // 4096)
    monkeypatch.setattr(shared_memory.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda path: said)


def warnings_of_reading(workers: int) -> list[str]:
    """Reads three batches, which must be the right ones."""
    batches = train_batches(numbered(4, size=64), Augmentation(64, "pad"), 128, seed=0)
    warnings: list[str] = []
    with contextlib.closing(Reader(batches, 0, workers, warn=warnings.append)) as reader:
        for index in range(3):
            np.testing.assert_array_equal(next(reader)["image"], batches[index]["image"])
    return warnings


def test_images_go_through_pipes_where_shared_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared_memory_of(monkeypatch, free=2**20)
    created: list[object] = []
    monkeypatch.setattr(SharedMemoryArray, "from_metadata", created.append)
    [warning] = warnings_of_reading(workers=1)
    assert re.fullmatch(
        r"worker processes need about 1\d\.\d MiB of shared memory, and /dev/shm has 1\.0 MiB "
        "free: docker run --shm-size=128m makes room, data.num_workers=0 reads in threads and "
        "needs none; images go through pipes, which takes longer",
        warning,
    )
    assert not created, "an array came in shared memory"


def test_the_need_grows_with_images_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker was seen to hold 4.9 MB, two 10.6 MB, at batch 64 of 64 pixels."""
    shared_memory_of(monkeypatch, free=2**26)
    monkeypatch.setattr(Reader, "_read_ahead", lambda self: contextlib.nullcontext())
    batches = train_batches(numbered(4, size=64), Augmentation(64, "pad"), 64, seed=0)
    needed = [Reader(batches, 0, workers)._shared_bytes / 1e6 for workers in (0, 1, 2)]
    assert needed[0] == 0
    assert 4.9 < needed[1] < 1.5 * 4.9
    assert 10.6 < needed[2] < 1.5 * 10.6


def test_threads_read_where_there_is_no_room_for_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_memory_of(monkeypatch, free=4096)
    [warning] = warnings_of_reading(workers=2)
    assert "/dev/shm has 0.0 MiB free" in warning
    assert warning.endswith("; threads read images in place of worker processes")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search"),
        OSError(errno.ENOSPC, "No space left on device", "/psm_1"),
    ],
)
def test_threads_read_on_where_shared_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Full:
        def __next__(self) -> None:
            raise error

        def close(self) -> None:
            pass

    original = Reader._read_ahead
    monkeypatch.setattr(
        Reader, "_read_ahead", lambda self: Full() if self._num_workers else original(self)
    )
    [warning] = warnings_of_reading(workers=2)
    assert warning.startswith("worker processes ran out of shared memory, /dev/shm is full: docker")


def test_other_errors_of_the_system_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "_read_ahead", lambda self: map(open, ["/no/such/file"]))
    batches = train_batches(SOURCE, AUGMENTATION, 64, seed=0)
    with pytest.raises(FileNotFoundError):
        next(Reader(batches, 0, 1))
