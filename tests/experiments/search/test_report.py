from typing import Any

import pytest

from experiments.search.comparison import Accuracies, Compared
from experiments.search.cost import Cost, Limits
from experiments.search.report import target_table
from experiments.search.runs import Network
from experiments.search.scaled_sizes import Scaled
from experiments.search.scaling import Rule
from experiments.search.study import Final
from experiments.search.timing import Ratio
from experiments.studies import intervals

BASELINE = [0.80, 0.81, 0.80, 0.79, 0.80]
LIMITS = Limits(400_000, 10_000_000)


def final(**changes: Any) -> Final:
    measured: dict[str, Any] = {
        "cost": Cost(400_000, 10_000_000, 0),
        "top1": [top1 + 0.02 for top1 in BASELINE],
        "speedup": Ratio(1.4, 1.3, 1.5),
        "gains": {2.0: 0.01, 4.0: 0.02},
        **changes,
    }
    network = Network("w", None, 32)
    compared = {"w": Compared(network, (0.1, 0.02), [0.8], measured["cost"])}
    gains = {work: intervals.Interval(gain, gain, gain) for work, gain in measured["gains"].items()}
    scaled = Scaled([], [], Rule(0.2, 0.2, 0.2), {}, gains)
    tested = Accuracies(measured["top1"], BASELINE)
    return Final(compared, "w", "EfficientNet, SGD", measured["speedup"], tested, scaled)


def reached(**changes: Any) -> list[str]:
    lines = target_table(final(**changes), LIMITS).splitlines()[4:]
    return [line.split("|")[-2].strip() for line in lines]


def test_all_targets_may_be_reached() -> None:
    assert reached() == ["yes"] * 6


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"cost": Cost(400_001, 10_000_000, 0)}, [0]),
        ({"cost": Cost(400_000, 10_000_001, 0)}, [0]),
        ({"top1": [top1 + 0.009 for top1 in BASELINE]}, [1]),
        ({"top1": [0.95, 0.70, 0.95, 0.70, 0.95]}, [2]),
        ({"top1": [0.82] * 4}, [2]),  # Too few seeds.
        ({"speedup": Ratio(1.29, 1.0, 1.5)}, [3]),
        ({"gains": {2.0: 0.01, 4.0: -0.01}}, [5]),
    ],
)
def test_a_miss_is_one_miss(changes: dict[str, Any], missed: list[int]) -> None:
    assert [at for at, word in enumerate(reached(**changes)) if word == "no"] == missed
