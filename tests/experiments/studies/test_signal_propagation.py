"""The networks that have lost a part, and their curves where they are small enough for a test."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments.studies import signal_propagation
from experiments.studies.signal_propagation import (
    INTACT,
    NO_BETA,
    UNSCALED,
    UNSTANDARDIZED,
    Budget,
)  # fmt: skip
from nfnets_jax.models.initialization import initialize
from nfnets_jax.models.signal_propagation import Signal, measure_model

CONFIG = nfnets_jax.create_model("nfnet_micro").config


def block(change: str, **params: Any) -> tuple[np.ndarray, hk.Params]:
    """Returns what a block makes of noise of variance 4, with its branch open."""
    x = 2 * jax.random.normal(jax.random.key(0), (4, 8, 8, 64))

    def run(x: jax.Array) -> jax.Array:
        made: Any = signal_propagation._BLOCKS[change](CONFIG, 64, 64, name="block")
        return made(x, 0.5)

    drawn, _ = initialize(run, jax.random.key(1), x)
    drawn["block"] = {"skip_gain": jnp.ones(())}
    apply = jax.jit(hk.transform(run).apply)
    return np.asarray(apply(drawn, None, x) - x), drawn


def test_each_change_takes_one_part_away() -> None:
    added = {change: block(change)[0].var() for change in (INTACT, UNSCALED, NO_BETA)}
    assert added[INTACT] == pytest.approx(CONFIG.alpha**2, rel=0.3)
    # GELU shrinks the deviation by 1.7015; the branch has three activations inside and one before.
    assert added[UNSCALED] < added[INTACT] / 1.7**4
    assert added[NO_BETA] > 2 * added[INTACT]
    _, params = block(UNSTANDARDIZED)
    kernels = [values["w"] for name, values in params.items() if "conv" in name]
    assert len(kernels) == 4 and not any("gain" in values for values in params.values())


def test_photographs_are_crops_of_two() -> None:
    images = signal_propagation.photographs(jax.random.key(0), Budget(16, 4, 1, 1, ()))
    assert images.shape == (4, 16, 16, 3)
    smooth = np.abs(np.diff(images, axis=2)).mean() / np.std(images)
    assert 0 < smooth < 0.5  # Neighbours are alike: of noise it is 2 / sqrt(pi).


def test_seeds_are_averaged_by_network_and_images() -> None:
    rows = [
        {"network": name, "change": change, "images": images, "seed": seed,
         **{field: [value] for field in Signal._fields if field != "blocks"}}
        for name, change in signal_propagation._NETWORKS
        for images, factor in (("noise", 1.0), ("photographs", 100.0))
        for seed, value in ((0, factor), (1, 4 * factor))
    ]  # fmt: skip
    found = signal_propagation.mean_signals(rows, "noise")
    assert found["resnet50", INTACT].gradient == pytest.approx([2.0])


def measure(name: str, change: str = INTACT) -> Signal:
    design = Budget(32, 16, seeds=1, width_divisor=2, networks=())
    images = signal_propagation.noise(jax.random.key(0), design)
    model = signal_propagation.network(name, change, design.width_divisor)
    return measure_model(model, images, jax.random.key(1))


@pytest.mark.slow
def test_an_nf_resnet_follows_its_prediction_until_it_loses_a_part() -> None:
    intact = measure("nf_resnet26_small")
    predicted = signal_propagation.predicted_variances("nf_resnet26_small")
    assert predicted is not None
    # The last two stages are too small for their statistics.
    np.testing.assert_allclose(intact.variance[:4], predicted[:4], rtol=0.1)
    np.testing.assert_allclose(intact.branch_variance[:2], 0.2**2, rtol=0.3)
    unstandardized = measure("nf_resnet26_small", UNSTANDARDIZED)
    assert unstandardized.squared_mean.max() > 10 * intact.squared_mean.max()
    # Without normalization and without its replacement, the signal grows with depth.
    unnormalized = measure("unnormalized_resnet26_small").variance
    assert unnormalized[-1] / unnormalized[0] > 10 * intact.variance.max()
