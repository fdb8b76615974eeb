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

DESIGN = Budget(64, 16, seeds=6, width_divisor=8, networks=())
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


@pytest.mark.slow
def test_an_nf_resnet_follows_its_prediction_until_it_loses_a_part() -> None:
    def measure(change: str, seed: int = 0) -> Signal:
        model = signal_propagation.network("nf_resnet50", change, DESIGN.width_divisor)
        images_key, key = jax.random.split(jax.random.key(seed))
        return measure_model(model, signal_propagation.noise(images_key, DESIGN), key)

    # Branches are 8 channels wide: a single draw is far from the mean.
    drawn = [measure(INTACT, seed) for seed in range(DESIGN.seeds)]
    variance, mean, branch = (
        np.mean([getattr(signal, field) for signal in drawn], axis=0)
        for field in ("variance", "squared_mean", "branch_variance")
    )
    predicted = signal_propagation.predicted_variances("nf_resnet50")
    assert predicted is not None
    # At 64 pixels the last stage is too small for its statistics.
    np.testing.assert_allclose(variance[:7], predicted[:7], rtol=0.1)
    np.testing.assert_allclose(branch[1:3], 0.2**2, rtol=0.3)
    assert measure(UNSTANDARDIZED).squared_mean.max() > 10 * mean.max()
    assert measure(UNSCALED).branch_variance[1] < branch[1] / 10


@pytest.mark.slow
def test_a_resnet_without_normalization_explodes() -> None:
    images = signal_propagation.noise(jax.random.key(0), DESIGN)
    unnormalized, normalized = (
        measure_model(signal_propagation.network(name, INTACT, 8), images, jax.random.key(1))
        for name in ("unnormalized_resnet50", "resnet50")
    )
    assert unnormalized.variance.max() > 10 * normalized.variance.max()
