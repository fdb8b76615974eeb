"""Watches worker processes that read images: the frozen are ended, none outlives its parent."""

import functools
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

# Seconds without a batch and without any work of the processes, after which they are ended.
_PATIENCE = 30.0
_TICK = 1.0


class Watch:
    """Ends worker processes that are frozen while a batch is waited for.

    They are frozen if they are stopped, or if none has used its processor, nor waits for a disk,
    since the waiting began. Where there is no ``/proc``, nothing is watched.
    """

    def __init__(self, warn: Callable[[str], None]):
        """Starts to watch; ``warn`` is called with a line of text for each process it ends."""
        self._warn = warn
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
                waiting_since, at_first = since, _work() if since else {}
            elif since and time.monotonic() - since > _PATIENCE:
                self._end_frozen(at_first)
                waiting_since = None

    def _end_frozen(self, at_first: dict[int, tuple[str, int]]) -> None:
        now = _work()
        frozen = {pid for pid, (state, _) in now.items() if state in "Tt"}
        if not frozen and now == at_first and not any(state == "D" for state, _ in now.values()):
            frozen = set(now)
        for process in _workers():
            if process.pid in frozen:
                self._warn(
                    f"worker process {process.pid} that reads images has not moved for "
                    f"{_PATIENCE:.0f} s; it is ended"
                )
                process.kill()


def _workers() -> list[BaseProcess]:
    """Returns Grain's processes: a program may have others, which may rest as long as they like."""
    children = multiprocessing.active_children()
    return [process for process in children if process.name.startswith("grain-")]


def _work() -> dict[int, tuple[str, int]]:
    """Returns state and processor time of each worker process, by its number."""
    found = {}
    for process in _workers():
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:  # It has ended, or this is not Linux.
            continue
        found[process.pid or 0] = fields[0], int(fields[11]) + int(fields[12])
    return found


@functools.cache
def end_with_parent() -> None:
    """Ends this worker process when its parent ends, however that happens."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def hide_leak_warnings() -> None:
    """Silences Python's warning of shared memory that it frees when a run ends early."""
    option = "ignore::UserWarning:multiprocessing.resource_tracker"
    options = os.environ.get("PYTHONWARNINGS", "")
    if option not in options:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (options, option)))
