"""The time that a batch takes in each stage: reading, decoding and transferring."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType

# The stages, and what shortens each.
STAGES: Mapping[str, str] = MappingProxyType(
    {
        "reading": "raise data.num_workers, or put data.dir on a faster disk",
        "decoding": "raise data.num_workers, shrink photographs by nfnets prepare, or hold small "
        "images on the device by data.on_device",
        "transferring": "choose a smaller data.image_size, or another host",
    }
)


class _Clock(threading.local):
    """The seconds that this thread has read files since it began."""

    reading = 0.0


_CLOCK = _Clock()


@contextlib.contextmanager
def timed_reading() -> Iterator[None]:
    """Counts the time spent inside as reading; not to be nested."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _CLOCK.reading += time.perf_counter() - start


def seconds_reading() -> float:
    """Returns the seconds that this thread has spent in ``timed_reading``."""
    return _CLOCK.reading


class StageTimes:
    """Divides the time that is spent waiting for batches among the stages.

    Batches are loaded, by several workers at once, and then transferred, one after the other. While
    a program waits for data, the time between two transfers is spent waiting for workers, which
    read and decode.
    """

    def __init__(self) -> None:
        """Starts the clock."""
        self._since = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._loading, self._transferring = 0.0, 0.0
        self._worked = {"reading": 0.0, "decoding": 0.0}

    def loaded(self, reading: float, decoding: float) -> None:
        """Notes that a batch has come, on which workers spent so many seconds."""
        now = time.perf_counter()
        self._loading += now - self._since
        self._since = now
        self._worked["reading"] += reading
        self._worked["decoding"] += decoding

    def transferred(self) -> None:
        """Notes that the batch has been transferred."""
        now = time.perf_counter()
        self._transferring += now - self._since
        self._since = now

    def shares(self) -> dict[str, float]:
        """Returns each stage's share of the time since the last call; empty if nothing came."""
        total, worked = self._loading + self._transferring, sum(self._worked.values())
        if not total or not worked:
            return {}
        shares = {
            name: self._loading / total * seconds / worked for name, seconds in self._worked.items()
        }
        shares["transferring"] = self._transferring / total
        self._clear()
        return shares
