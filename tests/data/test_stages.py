import contextlib

import numpy as np
import pytest

from nfnets_jax.data import stages
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.pipeline import train_batches
from nfnets_jax.data.reader import Reader
from nfnets_jax.data.sources import Record, fetch
from nfnets_jax.data.sources.source import select
from tests.data.fake_sources import numbered


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(stages, "time", clock := Clock())
    return clock


def test_waiting_is_divided_among_the_stages(clock: Clock) -> None:
    times = stages.StageTimes()
    assert times.shares() == {}
    for _ in range(2):
        clock.now += 3  # Four workers share 12 seconds of work.
        times.loaded(reading=4, decoding=8)
        clock.now += 1
        times.transferred()
    assert times.shares() == pytest.approx({"reading": 0.25, "decoding": 0.5, "transferring": 0.25})
    assert times.shares() == {}


def test_reading_is_counted_once_through_selections(clock: Clock) -> None:
    class Slow:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> Record:
            clock.now += 2
            return Record(image=b"", label=0, name="")

    before = stages.seconds_reading()
    fetch(select(Slow(), np.arange(3, 9)), [0, 1])
    assert stages.seconds_reading() - before == 4


def test_a_reader_tells_the_stages_and_keeps_them_out_of_batches() -> None:
    batches = train_batches(numbered(20), Augmentation(8), 4, seed=0)
    with contextlib.closing(Reader(batches)) as reader:
        assert next(reader).keys() == batches[0].keys()
        shares = reader.stage_shares()
    assert set(shares) == set(stages.STAGES)
    assert sum(shares.values()) == pytest.approx(1)
