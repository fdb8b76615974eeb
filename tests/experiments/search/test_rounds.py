import numpy as np
import pytest

from experiments.search.pictures import frontier
from experiments.search.rounds import Drawn, best, levels, narrow
from experiments.search.space import SPACE, Design, draw


def designs(count: int) -> list[Design]:
    rng = np.random.default_rng(0)
    return [draw(SPACE, rng) for _ in range(count)]


def test_a_value_that_costs_accuracy_goes_and_one_that_does_not_stays() -> None:
    drawn, rng = designs(80), np.random.default_rng(1)
    top1 = [0.6 - 0.2 * (each.stem == 32) + rng.normal(0, 0.02) for each in drawn]
    found = levels(SPACE, drawn, top1)
    narrowed = narrow(SPACE, found)
    assert narrowed["stem"] == (16,)
    assert set(narrowed) == set(SPACE)
    assert all(values for values in narrowed.values())
    (_, worse) = found["stem"]
    assert worse.gain.estimate == pytest.approx(-0.2, abs=0.02)
    assert len(worse.top1) == sum(each.stem == 32 for each in drawn)


def test_a_gain_is_the_area_between_the_distribution_functions() -> None:
    drawn, rng = designs(40), np.random.default_rng(1)
    top1 = list(rng.uniform(0.2, 0.8, len(drawn)))
    level = levels(SPACE, drawn, top1)["activation"][0]
    others = [y for d, y in zip(drawn, top1, strict=True) if d.activation != level.value]
    errors = np.linspace(0, 1, 20_001)
    ours, theirs = (
        np.mean(1 - np.array(each)[:, None] <= errors, axis=0) for each in (level.top1, others)
    )
    assert level.gain.estimate == pytest.approx(np.mean(ours - theirs), abs=1e-3)


def test_equal_networks_narrow_nothing() -> None:
    drawn = designs(30)
    assert narrow(SPACE, levels(SPACE, drawn, [0.5] * len(drawn))) == SPACE


def test_the_best_are_the_most_accurate_of_the_space() -> None:
    rng = np.random.default_rng(0)
    drawn = [Drawn(str(at), each, None, None) for at, each in enumerate(designs(10))]  # type: ignore[arg-type]
    top1 = list(rng.permutation(10) / 10)
    stem = {**SPACE, "stem": (16,)}
    found = best(drawn, top1, stem, 10)
    inside = [each for each in found if each.design.stem == 16]
    assert found[: len(inside)] == inside
    order = [top1[int(each.name)] for each in inside]
    assert order == sorted(order, reverse=True)


def test_the_frontier_has_what_no_other_beats() -> None:
    rng = np.random.default_rng(0)
    seconds, errors = rng.integers(1, 20, (2, 40)).tolist()
    found = frontier(seconds, errors)
    for place in range(40):
        beaten = any(
            seconds[at] <= seconds[place]
            and errors[at] <= errors[place]
            and (seconds[at], errors[at]) != (seconds[place], errors[place])
            for at in range(40)
        )
        points = [(seconds[at], errors[at]) for at in found]
        assert ((seconds[place], errors[place]) in points) == (not beaten)
