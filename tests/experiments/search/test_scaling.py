import dataclasses

import pytest

from experiments.search.cost import Limits
from experiments.search.scaling import Rule, Split, apply, fit, split_rule, splits
from nfnets_jax.models.nfnet import VARIANTS

SMALL = dataclasses.replace(
    VARIANTS["nfnet_micro"], width=(64,), depth=(2,), strides=(1,), train_size=16, group_size=8
)


@pytest.mark.parametrize("split", splits((24, 32, 40)))
def test_a_split_spends_all_of_the_work(split: Split) -> None:
    depth, width, resolution = split_rule(split, 32, 2.0)
    assert depth + 2 * width + 2 * resolution == pytest.approx(1)
    assert 32 * 2**resolution == pytest.approx(split.size)


@pytest.mark.parametrize(("best", "share"), [(34.0, 0.25), (28.0, 0.75)])
def test_the_rule_is_the_best_of_a_planted_accuracy(best: float, share: float) -> None:
    tried = splits((24, 32, 40))
    optimum = split_rule(Split(round(best), share), 32, 2.0).resolution
    sign = 1 if share > 0.5 else -1

    def top1(split: Split) -> float:
        power = split_rule(split, 32, 2.0).resolution
        return 0.9 - 0.1 * (power - optimum) ** 2 + 0.02 * sign * split.depth_share

    found = fit(tried, [top1(split) for split in tried], 32, 2.0)
    assert found.resolution == pytest.approx(optimum)
    assert found.depth == pytest.approx(share * (1 - 2 * optimum))


def test_a_rule_stays_within_what_was_tried() -> None:
    tried = splits((24, 32, 40))
    found = fit(tried, [split.size / 100 for split in tried], 32, 2.0)
    assert found.resolution == pytest.approx(split_rule(Split(40, 0.25), 32, 2.0).resolution)


def test_a_scaled_network_has_the_work() -> None:
    limits = Limits(10**9, Limits(0, 0).count(SMALL).multiply_adds)
    larger = apply(Rule(0.4, 0.2, 0.1), SMALL, 4.0, limits.times(4.0))
    assert larger.train_size == round(16 * 4**0.1)
    assert larger.depth == (3,)  # 4 ** 0.4 is 1.74.
    assert 3.3 < limits.count(larger).multiply_adds / limits.multiply_adds <= 4
