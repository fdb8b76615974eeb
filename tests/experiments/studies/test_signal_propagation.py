"""The curves of networks that are small enough for a test."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments.studies import signal_propagation
from experiments.studies.signal_propagation import INTACT, UNSCALED, UNSTANDARDIZED, Budget

DESIGN = Budget(64, 16, seeds=6, width_divisor=8)


def measure(network: str, change: str = INTACT, seed: int = 0) -> signal_propagation.Curves:
    return signal_propagation.measure(network, change, DESIGN, seed)


def test_no_kernel_stays_standardized() -> None:
    images = jnp.zeros((1, 16, 16, 3))
    model = nfnets_jax.create_model("nfnet_micro")
    params, _ = model.init(jax.random.key(0), images)

    def largest_means(weights: Any) -> list[float]:
        arrays = [values["w"] for values in weights.values() if "w" in values]
        kernels = [array for array in arrays if array.ndim == 4]
        assert len(kernels) == 17
        return [float(jnp.abs(jnp.mean(k, range(k.ndim - 1))).max()) for k in kernels]

    weights = model.prepare(params, images)
    drawn = signal_propagation.draw_kernels(weights, jax.random.key(1))
    assert max(largest_means(weights)) < 1e-6
    assert min(largest_means(drawn)) > 1e-3


def test_gains_take_the_place_of_a_missing_factor() -> None:
    model = nfnets_jax.create_model("nfnet_micro", depth=(1, 1), width=(16, 16), strides=(1, 1))
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    gains = {
        change: {
            module.partition("~/")[2]: float(arrays["gain"][0] / params[module]["gain"][0])
            for module, arrays in signal_propagation.rescale(params, change, model.config).items()
            if "gain" in arrays
        }
        for change in (INTACT, UNSCALED, signal_propagation.NO_BETA)
    }
    assert set(gains[INTACT].values()) == {1.0}
    names = {name for name, gain in gains[UNSCALED].items() if gain < 1}
    assert names == {name for name in gains[INTACT] if "block" in name}
    # The first block's input has variance 1, the second's 1 + alpha**2.
    changed = {n: gain for n, gain in gains[signal_propagation.NO_BETA].items() if gain != 1}
    assert changed == pytest.approx({"nf_block_1/~/conv0": (1 + 0.2**2) ** 0.5})


@pytest.mark.slow
def test_an_nf_resnet_follows_its_prediction_until_it_loses_a_part() -> None:
    # Branches are 8 channels wide: a single draw is far from the mean.
    drawn = [measure("nf_resnet50", seed=seed) for seed in range(DESIGN.seeds)]
    intact = {name: np.mean([curves[name] for curves in drawn], axis=0) for name in drawn[0]}
    predicted = signal_propagation.predicted_variances("nf_resnet50")
    assert predicted is not None
    # At 64 pixels the last stage is too small for its statistics.
    np.testing.assert_allclose(intact["variance"][:7], predicted[:7], rtol=0.1)
    np.testing.assert_allclose(intact["branch_variance"][1:3], 0.2**2, rtol=0.3)
    drawn_kernels = measure("nf_resnet50", UNSTANDARDIZED)
    assert drawn_kernels["squared_mean"].max() > 10 * intact["squared_mean"].max()
    unscaled = measure("nf_resnet50", UNSCALED)
    assert unscaled["branch_variance"][1] < intact["branch_variance"][1] / 10


@pytest.mark.slow
def test_a_resnet_without_normalization_explodes() -> None:
    unnormalized, normalized = measure("unnormalized_resnet50"), measure("resnet50")
    assert unnormalized["variance"].max() > 10 * normalized["variance"].max()
