"""Worker processes that read images: the frozen are ended, and none outlives its parent."""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle

from nfnets_jax.data.shared_memory import SharedArrays

# Seconds without a batch and without any work of the processes, after which they are ended.
_PATIENCE = 30.0
_TICK = 1.0


class WorkerProcesses:
    """Processes that call one function, each for some arguments at a time.

    Attributes:
      watch: to be entered while a result is waited for.
    """

    def __init__(
        self,
        count: int,
        work: Callable[..., Any],
        arrays: SharedArrays,
        warn: Callable[[str], None],
    ):
        """Prepares ``count`` processes, which start as there is work.

        Args:
          count: of the processes.
          work: the function, which may be of a notebook; it is called with ``arrays`` and the
            arguments of ``submit``.
          arrays: memory that the processes fill.
          warn: called with a line of text for each process that is ended because it is frozen.

        Raises:
          OSError: ``/dev/shm`` has no room for locks.
        """
        _hide_leak_warnings()
        self._context = _Context()
        self._executor = ProcessPoolExecutor(
            count, self._context, _start, (cloudpickle.dumps(work), arrays)
        )
        self.watch = Watch(self._context.processes, warn)

    def submit(self, *arguments: Any) -> Future[Any]:
        """Has a process call the function; the future raises ``BrokenProcessPool`` if one dies."""
        return self._executor.submit(_call, *arguments)

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        self.watch.close()
        for process in self._context.processes:
            if process.pid:  # It has started.
                process.kill()
        self._executor.shutdown(cancel_futures=True)


class _Context(SpawnContext):
    """Starts processes, and knows them."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*args, **kwargs)
        self.processes.append(process)
        return process


# In a worker process, the function that it calls.
_work: Callable[..., Any]


def _start(work: bytes, arrays: SharedArrays) -> None:
    """Prepares this worker process."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides when it ends.
    _end_with_parent()
    _work = functools.partial(cloudpickle.loads(work), arrays)


def _call(*arguments: Any) -> Any:
    return _work(*arguments)


class Watch(contextlib.AbstractContextManager[None]):
    """Ends worker processes that are frozen while a batch is waited for.

    They are frozen if they are stopped, or if none has used its processor, nor waits for a disk,
    since the waiting began. Where there is no ``/proc``, nothing is watched.
    """

    def __init__(self, processes: Sequence[BaseProcess], warn: Callable[[str], None]):
        """Starts to watch.

        Args:
          processes: those that are watched; there may be more later.
          warn: called with a line of text for each process that is ended.
        """
        self._processes, self._warn = processes, warn
        self._since: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        """Begins to wait for a batch."""
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = None

    def close(self) -> None:
        """Stops to watch."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        waiting_since, at_first = None, {}
        while not self._closed.wait(_TICK):
            since = self._since
            if since != waiting_since:
                waiting_since, at_first = since, self._work() if since else {}
            elif since and time.monotonic() - since > _PATIENCE:
                self._end_frozen(at_first)
                waiting_since = None

    def _end_frozen(self, at_first: dict[int, tuple[str, int]]) -> None:
        now = self._work()
        frozen = {pid for pid, (state, _) in now.items() if state in "Tt"}
        if not frozen and now == at_first and not any(state == "D" for state, _ in now.values()):
            frozen = set(now)
        for process in self._processes:
            if process.pid in frozen:
                self._warn(
                    f"worker process {process.pid} that reads images has not moved for "
                    f"{_PATIENCE:.0f} s; it is ended"
                )
                process.kill()

    def _work(self) -> dict[int, tuple[str, int]]:
        """Returns state and processor time of each process that runs, by its number."""
        found = {}
        for process in self._processes:
            with contextlib.suppress(OSError):  # It has ended, or this is not Linux.
                fields = Path(f"/proc/{process.pid}/stat").read_text("ascii").rpartition(")")[2]
                state, *numbers = fields.split()
                found[process.pid or 0] = state, int(numbers[10]) + int(numbers[11])
        return found


def _end_with_parent() -> None:
    """Ends this worker process when its parent ends, however that happens."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _hide_leak_warnings() -> None:
    """Silences Python's warning of locks that it frees when a run ends early."""
    option = "ignore::UserWarning:multiprocessing.resource_tracker"
    options = os.environ.get("PYTHONWARNINGS", "")
    if option not in options:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (options, option)))
