import math
from collections.abc import Sequence
from typing import Any

import pytest

from experiments.search.budgets import BUDGETS
from experiments.search.comparison import Arm, compare
from experiments.search.cost import Cost
from experiments.search.runs import Member, Network

BEST_RATE = 0.8


class Counting:
    """Limits that count nothing."""

    def count(self, config: Any) -> Cost:
        return Cost(1, 1, 1)


class Recording:
    """A trainer whose accuracy falls with the distance from BEST_RATE."""

    def __init__(self) -> None:
        self.members: list[Member] = []

    def train(self, stage: str, members: Sequence[Member], epochs: float) -> list[dict[str, Any]]:
        self.members += members
        return [
            {"top1": 0.9 - 0.1 * abs(math.log2(each.learning_rate / BEST_RATE)) - 0.01 * each.seed}
            for each in members
        ]


def run(trainer: Any, pairs: list[tuple[float, float]]) -> Any:
    limits: Any = Counting()
    budget = BUDGETS["smoke"]._replace(seeds=2)
    arms = {"arm": Arm(Network("network", None, 8), pairs)}
    return compare(trainer, arms, budget, limits, "comparison")["arm"]


@pytest.mark.parametrize("rates", [(0.2, 0.4), (1.6, 3.2), (0.4, 0.8, 1.6)])
def test_a_baseline_finds_its_best_rate(rates: Sequence[float]) -> None:
    trainer = Recording()
    found = run(trainer, [(rate, 0.0) for rate in rates])
    assert found.pair == (BEST_RATE, 0.0)
    assert found.top1 == pytest.approx([0.9, 0.89])
    tried = {member.learning_rate for member in trainer.members}
    assert min(tried) < BEST_RATE < max(tried)
    assert len(trainer.members) == len(set(trainer.members))


def test_a_network_with_one_pair_keeps_it() -> None:
    assert run(Recording(), [(0.1, 0.02)]).pair == (0.1, 0.02)


def test_the_range_ends_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(Recording(), [(0.8 / 256, 0.0), (0.8 / 128, 0.0)])
    assert found.pair == (0.8 / 16, 0.0)
    assert "at the edge" in capsys.readouterr().out
