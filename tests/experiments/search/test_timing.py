import numpy as np
import pytest

from experiments.search.cost import Cost
from experiments.search.timing import Step, fit_times, step_ratio


def costs(count: int) -> list[Cost]:
    rng = np.random.default_rng(0)
    return [Cost(*(int(10**x) for x in rng.uniform(5, 7, 3))) for _ in range(count)]


def law(cost: Cost) -> float:
    return 1e-4 * cost.parameters**0.1 * cost.multiply_adds**0.5 * cost.activations**0.3


def test_a_planted_power_law_is_found_without_error() -> None:
    measured = costs(12)
    model = fit_times(measured, [law(cost) for cost in measured])
    assert model.exponents[1:] == pytest.approx([0.1, 0.5, 0.3], abs=1e-5)
    assert max(model.errors) < 1e-5
    other = Cost(300_000, 5_000_000, 40_000)
    assert model.ratio(other) == pytest.approx(law(other), rel=1e-4)


def test_the_error_is_of_networks_that_the_law_has_not_seen() -> None:
    measured = costs(12)
    ratios = [law(cost) for cost in measured]
    ratios[3] *= 2
    errors = fit_times(measured, ratios).errors
    assert np.argmax(errors) == 3
    assert errors[3] > np.log(2)  # The law by all networks leans towards it; this one does not.


def test_counts_that_do_not_differ_have_no_power() -> None:
    measured = [cost._replace(multiply_adds=10**7 + place) for place, cost in enumerate(costs(9))]
    model = fit_times(measured, [law(cost) for cost in measured])
    assert model.exponents[2] == pytest.approx(0, abs=1e-3)
    assert model.ratio(measured[0]) == pytest.approx(law(measured[0]), rel=1e-3)


def test_a_ratio_is_of_measurements_side_by_side() -> None:
    """A machine that slows down more and more changes no ratio."""
    called: list[str] = []

    def step(name: str, seconds: float) -> Step:
        def run() -> float:
            called.append(name)
            return seconds * 2 ** ((len(called) - 3) // 2)

        return run

    ratio = step_ratio(step("network", 0.3), step("anchor", 0.2), turns=4)
    assert ratio == pytest.approx((1.5, 1.5, 1.5))
    # Who is first alternates, as whoever is second finds a warm machine.
    assert called[2:] == ["anchor", "network", "network", "anchor"] * 2
