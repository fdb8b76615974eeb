import dataclasses

import jax
import jax.numpy as jnp

from experiments.search import cost
from experiments.search.baselines import scaled
from experiments.search.cost import Limits, widest
from nfnets_jax.models.nfnet import VARIANTS, NFNetConfig
from nfnets_jax.models.registry import Model

SMALL = dataclasses.replace(
    VARIANTS["nfnet_micro"], width=(64,), depth=(1,), strides=(1,), train_size=8
)


def wide(width: float) -> NFNetConfig:
    return scaled(SMALL, width)


def test_the_count_is_that_of_the_arrays() -> None:
    model = Model("any", 10, SMALL)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert cost.count(SMALL).parameters == sum(a.size for a in jax.tree.leaves(params))


def test_the_widest_network_is_within_the_limits_and_the_next_is_not() -> None:
    limits = Limits(40_000, 10**9)
    found = widest(wide, limits, 0.1, 8.0)
    assert found is not None
    assert limits.allow(wide(found))
    assert not limits.allow(wide(1.13 * found))


def test_both_bounds_hold() -> None:
    own = cost.count(SMALL)
    assert Limits(own.parameters, own.multiply_adds).allow(SMALL)
    assert not Limits(own.parameters - 1, own.multiply_adds).allow(SMALL)
    assert not Limits(own.parameters, own.multiply_adds - 1).allow(SMALL)


def test_no_width_may_be_within_the_limits() -> None:
    assert widest(wide, Limits(10, 10), 0.1, 8.0) is None
