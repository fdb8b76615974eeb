"""The study's curves, of networks small enough for a test."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments.studies import signal_propagation

measure = functools.partial(signal_propagation.measure, size=64, images=16, part=8)


def test_no_kernel_stays_standardized() -> None:
    def largest_means(weights: Any) -> list[float]:
        arrays = [values["w"] for values in weights.values() if "w" in values]
        kernels = [array for array in arrays if array.ndim == 4]
        assert len(kernels) == 17
        return [float(jnp.abs(jnp.mean(k, range(k.ndim - 1))).max()) for k in kernels]

    images = jnp.zeros((1, 16, 16, 3))
    model = nfnets_jax.create_model("nfnet_micro")
    weights = model.prepare(model.init(jax.random.key(0), images)[0], images)
    changed = signal_propagation._changed(
        weights, model.config, "kernels not standardized", jax.random.key(1)
    )
    assert max(largest_means(weights)) < 1e-6
    assert min(largest_means(changed)) > 1e-3


@pytest.mark.slow
def test_what_an_nf_resnet_loses_shows() -> None:
    # Branches are 8 channels wide: each draw is far off by itself.
    drawn = [measure("nf_resnet50", "", seed=seed) for seed in range(6)]
    whole = {name: np.mean([curves[name] for curves in drawn], axis=0) for name in drawn[0]}
    predicted = signal_propagation._predicted(nfnets_jax.create_model("nf_resnet50").config)
    # At 64 pixels the last stage is too small to tell.
    np.testing.assert_allclose(whole["variance"][:7], predicted[:7], rtol=0.1)
    np.testing.assert_allclose(whole["branch_variance"][1:3], 0.2**2, rtol=0.3)
    raw = measure("nf_resnet50", "kernels not standardized")
    assert raw["squared_mean"].max() > 10 * whole["squared_mean"].max()
    unscaled = measure("nf_resnet50", "activations not scaled")
    assert unscaled["branch_variance"][1] < whole["branch_variance"][1] / 10


@pytest.mark.slow
def test_a_resnet_with_nothing_for_normalization_explodes() -> None:
    nothing, normalized = measure("unnormalized_resnet50", ""), measure("resnet50", "")
    assert nothing["variance"].max() > 10 * normalized["variance"].max()
