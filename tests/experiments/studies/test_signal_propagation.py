"""The study's curves, of networks small enough for a test."""

import functools

import numpy as np
import pytest

import nfnets_jax
from experiments.studies import signal_propagation

measure = functools.partial(signal_propagation.measure, size=64, images=16, part=8)


@pytest.mark.slow
def test_what_an_nf_resnet_loses_shows() -> None:
    whole = measure("nf_resnet50", "")
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
