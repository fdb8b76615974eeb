"""Confidence intervals by the bootstrap, for the runs with several seeds of a study.

The interval of a few seeds is too narrow: the standard deviation of ``n`` resampled values lacks a
factor of ``sqrt(n / (n - 1))``, 22% for three. Read one of fewer than five as a lower bound.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES = 9999


class Interval(NamedTuple):
    """An estimate and the ends of its 95% confidence interval; NaN where there is none."""

    estimate: float
    low: float
    high: float

    def text(self, form: str) -> str:
        """Returns the interval as a table shows it, each number in a format."""
        if math.isnan(self.low):
            return f"{self.estimate:{form}}"
        return f"{self.estimate:{form}} ({self.low:{form}} to {self.high:{form}})"

    def points(self) -> str:
        """Returns an interval of shares as a table shows it, in percentage points."""
        return Interval(*(100 * number for number in self)).text("+.1f")


def mean(values: Sequence[float]) -> Interval:
    """Returns the mean of independent values with its interval."""
    return contrast([values], [1])


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns the difference of two means of independent values, the first less the second."""
    return contrast([first, second], [1, -1])


def contrast(samples: Sequence[Sequence[float]], weights: Sequence[float]) -> Interval:
    """Returns a weighted sum of the means of several samples with its bootstrap interval.

    Values are drawn again from each sample by themselves, and the interval is that of the
    percentiles (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).

    Args:
      samples: independent values of each arm, such as the accuracies of several seeds.
      weights: one an arm; a main effect of ``k`` arms with a factor and ``k`` without has
        ``1 / k`` and ``-1 / k``.

    Returns:
      The interval. Its ends are NaN if a sample has one value, which shows no spread.
    """
    arrays = [np.asarray(sample, float) for sample in samples]

    def statistic(*arms: Any, axis: int = -1) -> Any:
        return sum(weight * arm.mean(axis=axis) for weight, arm in zip(weights, arms, strict=True))

    estimate = float(statistic(*arrays))
    if min(map(len, arrays)) < 2:
        return Interval(estimate, math.nan, math.nan)
    if all(np.ptp(array) == 0 for array in arrays):
        return Interval(estimate, estimate, estimate)
    found = stats.bootstrap(
        arrays, statistic, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    return Interval(estimate, *map(float, found.confidence_interval))
