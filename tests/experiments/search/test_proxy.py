import itertools

import pytest
from scipy import stats

from experiments.search.proxy import accept

SHORT = [0.51, 0.42, 0.63, 0.44, 0.75, 0.36, 0.58, 0.49]
LONG = [0.72, 0.61, 0.83, 0.66, 0.81, 0.62, 0.70, 0.64]


def test_tau_counts_pairs_in_the_same_order() -> None:
    pairs = list(itertools.combinations(range(len(SHORT)), 2))
    agree = sum((SHORT[a] - SHORT[b]) * (LONG[a] - LONG[b]) > 0 for a, b in pairs)
    found = accept(SHORT, LONG)
    assert found.tau.estimate == pytest.approx(2 * agree / len(pairs) - 1)
    assert found.tau.low < found.tau.estimate < found.tau.high
    assert found.networks == len(SHORT)


@pytest.mark.parametrize(("long", "accepted"), [(SHORT, True), (SHORT[::-1], False)])
def test_the_proxy_is_accepted_if_it_orders_networks(long: list[float], accepted: bool) -> None:
    assert accept(SHORT, long).is_accepted == accepted


def test_ties_count_as_scipy_counts_them() -> None:
    long = [0.1, 0.1, 0.2, 0.3, 0.3, 0.1, 0.2, 0.4]
    assert accept(SHORT, long).tau.estimate == pytest.approx(
        stats.kendalltau(SHORT, long).statistic
    )


def test_equal_accuracies_order_nothing() -> None:
    assert not accept(SHORT, [0.1] * len(SHORT)).is_accepted
