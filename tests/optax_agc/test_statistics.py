"""``with_statistics`` next to NumPy."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

from nfnets_jax import optax_agc
from tests.optax_agc.reference import random

PARAMS = {
    "conv": {"w": random(0, (3, 4, 8)), "gain": random(1, (8,))},
    "out": {"w": random(2, (8, 5))},
}
GRADS = jax.tree.map(lambda x: 0.02 * random(9 + x.ndim, x.shape), PARAMS)


def unit_axes(path: Any, param: jax.Array) -> tuple[int, ...]:
    return tuple(range(max(param.ndim - 1, 1)))


def ratios(module: str, name: str, scale: float = 1.0) -> np.ndarray:
    grad, param = scale * np.asarray(GRADS[module][name]), np.asarray(PARAMS[module][name])
    axes = unit_axes((), PARAMS[module][name])
    return np.sqrt((grad**2).sum(axes) / (param**2).sum(axes)).ravel()


def test_summarize_returns_shares_and_quantiles() -> None:
    mask = optax_agc.all_but("out/w")
    inner = optax.chain(
        optax_agc.adaptive_grad_clip(0.02, unit_axes=unit_axes, mask=mask), optax.sgd(1.0)
    )
    seen = optax_agc.with_statistics(
        inner, 0.02, unit_axes=unit_axes, mask=mask, quantiles=(0.25, 1.0)
    )
    optimizer = optax.chain(seen, optax.scale(1.0))
    updates, state = jax.jit(optimizer.update)(GRADS, optimizer.init(PARAMS), PARAMS)
    figures = optax_agc.summarize(state)
    clipped = 0.0
    for module, name in (("conv", "w"), ("conv", "gain"), ("out", "w")):
        expected = ratios(module, name)
        quantiles = [figures[f"{module}/{name}/ratio_p{level}"] for level in (25, 100)]
        np.testing.assert_allclose(quantiles, np.quantile(expected, (0.25, 1.0)), rtol=1e-5)
        share = float(np.mean(expected > 0.02)) if module == "conv" else 0.0
        assert figures[f"{module}/{name}/clipped"] == pytest.approx(share)
        clipped += share * expected.size
    assert 0 < clipped < 9
    assert figures["clipped"] == pytest.approx(clipped / (8 + 1 + 5))
    alone, _ = jax.jit(inner.update)(GRADS, inner.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, updates, alone)


def test_quantiles_are_computed_every_so_often_and_the_rest_each_step() -> None:
    optimizer = optax_agc.with_statistics(
        optax.identity(), 0.02, unit_axes=unit_axes, quantiles=(0.5,), every=2
    )
    update = jax.jit(optimizer.update, donate_argnums=1)
    state = optimizer.init(PARAMS)
    medians, shares = [], []
    for scale in (1.0, 2.0, 3.0):
        grads = jax.tree.map(lambda g, scale=scale: scale * g, GRADS)
        _, state = update(grads, state, PARAMS)
        figures = optax_agc.summarize(state)
        medians.append(figures["out/w/ratio_p50"])
        shares.append(figures["out/w/clipped"])
    expected = [np.median(ratios("out", "w", scale)) for scale in (1, 1, 3)]
    np.testing.assert_allclose(medians, expected, rtol=1e-5)
    np.testing.assert_allclose(
        shares, [np.mean(ratios("out", "w", scale) > 0.02) for scale in (1, 2, 3)], rtol=1e-5
    )


def test_units_that_are_not_finite_are_counted() -> None:
    optimizer = optax_agc.with_statistics(optax_agc.sgd_agc(0.1), unit_axes=unit_axes)
    state = optimizer.init(PARAMS)
    bad = {**GRADS, "out": {"w": GRADS["out"]["w"].at[0, 1].set(np.nan).at[2, 3].set(np.inf)}}
    update = jax.jit(optimizer.update)
    for grads in (bad, GRADS, bad):
        _, state = update(grads, state, PARAMS)
    figures = optax_agc.summarize(state)
    assert (figures["nonfinite"], figures["out/w/nonfinite"]) == (4, 4)
    finite = np.delete(ratios("out", "w"), [1, 3])
    assert figures["out/w/ratio_p50"] == pytest.approx(np.median(finite), rel=1e-5)


def test_in_the_state_of_multi_steps_and_without_some_gradients() -> None:
    steps = optax.MultiSteps(optax_agc.with_statistics(optax_agc.adamw_agc(0.1)), 1)
    _, state = jax.jit(steps.update)(GRADS, steps.init(PARAMS), PARAMS)
    assert optax_agc.summarize(state)["conv/gain/ratio_p100"] > 0
    frozen = {**GRADS, "out": {"w": None}}
    optimizer = optax_agc.with_statistics(optax.identity())
    _, state = jax.jit(optimizer.update)(frozen, optimizer.init(PARAMS), PARAMS)
    assert optax_agc.summarize(state)["out/w/ratio_p100"] == 0


def test_a_state_without_statistics_is_an_error() -> None:
    with pytest.raises(ValueError, match="the state has 0 of with_statistics, not one"):
        optax_agc.summarize(optax.sgd(0.1).init(PARAMS))
