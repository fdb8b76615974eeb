from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets_jax import optax_agc
from nfnets_jax.training import telemetry

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"w": RNG.standard_normal((3, 3, 4, 6), np.float32), "gain": np.ones(6, np.float32)},
    "linear": {"w": RNG.standard_normal((5, 7), np.float32)},
}
GRADS = jax.tree.map(lambda p: 0.02 * RNG.standard_normal(p.shape, np.float32), PARAMS)


def measure(grads: Any, params: Any, clipping: float = 0.02) -> Any:
    rows = telemetry.ClippingStats(1, clipping, 1e-3)(jnp.int32(1), grads, params)
    return telemetry.figures_of(np.asarray(rows), params)


def test_units_counted_as_clipped_are_those_that_clipping_changes() -> None:
    clipping = 0.02
    transformation = optax_agc.adaptive_grad_clip(clipping)
    clipped, _ = transformation.update(GRADS, optax.EmptyState(), PARAMS)
    figures = telemetry.named_figures(measure(GRADS, PARAMS, clipping))
    for module, name in (("conv", "w"), ("conv", "gain"), ("linear", "w")):
        before, after = np.asarray(GRADS[module][name]), np.asarray(clipped[module][name])
        unit = (0,) if before.ndim < 2 else tuple(range(before.ndim - 1))
        changed = np.any(before != after, axis=unit)
        assert figures[f"{module}/{name}/clipped"] == pytest.approx(np.mean(changed))
    norms = np.linalg.norm(GRADS["linear"]["w"], axis=0) / np.linalg.norm(
        PARAMS["linear"]["w"], axis=0
    )
    assert figures["linear/w/largest_ratio"] == pytest.approx(norms.max(), rel=1e-5)
    assert figures["linear/w/median_ratio"] == pytest.approx(np.median(norms), rel=1e-5)


def test_clipping_is_measured_every_so_many_steps() -> None:
    measure = jax.jit(telemetry.ClippingStats(3, 0.02, 1e-3))
    measured = [np.any(measure(step, GRADS, PARAMS)) for step in range(1, 7)]
    assert measured == [step % 3 == 0 for step in range(1, 7)]


def test_each_of_equal_layers_has_figures_of_its_own() -> None:
    layers = [jax.tree.map(lambda x, by=by: by * x, GRADS["conv"]) for by in (0.5, 1, 3)]
    one_by_one = measure(
        {f"conv_{place}": grads for place, grads in enumerate(layers)},
        {f"conv_{place}": PARAMS["conv"] for place in range(3)},
    )
    module = "net/~/__layer_stack_1/conv"
    stacked = measure(
        {module: jax.tree.map(lambda *x: np.stack(x), *layers)},
        {module: jax.tree.map(lambda x: np.stack([x] * 3), PARAMS["conv"])},
    )
    for place in range(3):
        for name in PARAMS["conv"]:
            alone = one_by_one[f"conv_{place}"][name]
            np.testing.assert_allclose(stacked[module][name][place], alone, rtol=1e-6)


def test_units_without_a_finite_gradient_are_left_out_of_the_quantiles() -> None:
    grads = {"linear": {"w": GRADS["linear"]["w"].copy()}}
    grads["linear"]["w"][2, 0] = np.nan
    whole = measure(
        {"linear": {"w": GRADS["linear"]["w"][:, 1:]}},
        {"linear": {"w": PARAMS["linear"]["w"][:, 1:]}},
    )
    measured = measure(grads, {"linear": PARAMS["linear"]})
    quantiles = measured["linear"]["w"][1:]
    np.testing.assert_allclose(quantiles, whole["linear"]["w"][1:], rtol=1e-6)
