import math

import numpy as np
import pytest

from experiments.studies import intervals


def test_the_interval_of_a_difference_is_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(3, 1, 400), rng.normal(1, 2, 400)
    estimate, low, high = intervals.difference(first.tolist(), second.tolist())
    assert estimate == pytest.approx(first.mean() - second.mean())
    half = 1.96 * math.sqrt(first.var() / 400 + second.var() / 400)
    assert (estimate - low, high - estimate) == pytest.approx((half, half), rel=0.06)


def test_a_main_effect_weighs_its_arms() -> None:
    arms = [[1.0, 1.2], [2.0, 2.2], [5.0, 5.2], [6.0, 6.2]]
    effect = intervals.contrast(arms, [0.5, 0.5, -0.5, -0.5])
    assert effect.estimate == pytest.approx(-4)
    assert -4.2 <= effect.low < -4 < effect.high <= -3.8


def test_one_value_has_no_interval_and_equal_values_have_one_of_no_width() -> None:
    one = intervals.mean([0.5])
    assert math.isnan(one.low)
    assert one.text(".1%") == "50.0%"
    assert intervals.Interval(0.012, -0.03, 0.05).points() == "+1.2 (-3.0 to +5.0)"
    assert intervals.mean([0.5, 0.5]).text(".1%") == "50.0% (50.0% to 50.0%)"
