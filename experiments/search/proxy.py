"""The proxy: short training of small networks, tuned on the anchor, and whether it is accepted.

Short training orders networks as long training would, or it is of no use. Kendall's rank
correlation (Kendall 1938, A New Measure of Rank Correlation) of the two accuracies of random
networks says how far it does.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..studies import grid, intervals
from ..studies.tuned_training import best_pair, untried_neighbours
from .budgets import Budget
from .runs import Member, Network, Trainer

LEAST_TAU = 0.6
_ROUNDS = 4  # Of neighbours of the best rate and threshold.
_RESAMPLES = 2000


class Proxy(NamedTuple):
    """The learning rate, for a batch of 256, and the threshold that all designs are trained by."""

    learning_rate: float
    clipping: float

    def member(self, network: Network, seed: int = 0) -> Member:
        """Returns the run of a network and a seed."""
        return Member(network, self.learning_rate, self.clipping, seed)


class Acceptance(NamedTuple):
    """Kendall's tau of short and long training, with its interval.

    Attributes:
      tau: rank correlation, -1 to 1, over the networks.
      networks: how many there are.
    """

    tau: intervals.Interval
    networks: int

    @property
    def is_accepted(self) -> bool:
        """Whether tau is large enough."""
        return self.tau.estimate >= LEAST_TAU


def tune(trainer: Trainer, anchor: Network, budget: Budget) -> Proxy:
    """Tunes rate and threshold on the anchor: a grid, then the neighbours of the best pair."""
    pairs = list(itertools.product(budget.rates, budget.clippings))
    rows: list[grid.Row] = []
    for _ in range(_ROUNDS):
        members = [Member(anchor, *pair) for pair in pairs]
        rows += trainer.train("tuning the anchor", members, budget.tuning_epochs)
        # A single pair, as for trying the program out, is not tuned.
        pairs = untried_neighbours(rows) if len(rows) > 1 else []
        if not pairs:
            break
    else:
        print("tuning the anchor: the best pair has neighbours that were not tried", flush=True)
    return Proxy(*best_pair(rows))


def accept(short: Sequence[float], long: Sequence[float]) -> Acceptance:
    """Returns how far short training orders networks as long training does.

    Args:
      short, long: accuracy of each network after short and after long training.
    """
    pairs = np.array([short, long])
    places = np.random.default_rng(0).integers(len(short), size=(_RESAMPLES, len(short)))
    resampled = _tau(*pairs[:, places])
    resampled = resampled[np.isfinite(resampled)]  # A sample may hold one network alone.
    ends = np.quantile(resampled, [0.025, 0.975]) if resampled.size else (np.nan, np.nan)
    return Acceptance(intervals.Interval(float(_tau(*pairs)), *map(float, ends)), len(short))


def _tau(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns Kendall's tau b of the last axes; NaN where all values of one are equal."""
    signs = [np.sign(x[..., :, None] - x[..., None, :]) for x in (first, second)]
    agreement, ours, theirs = (
        np.sum(a * b, axis=(-2, -1)) for a, b in (signs, (signs[0], signs[0]), (signs[1], signs[1]))
    )
    with np.errstate(invalid="ignore"):
        return agreement / np.sqrt(ours * theirs)
