import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets_jax.models import layers
from nfnets_jax.models.initialization import TruncatedNormal, initialize
from nfnets_jax.models.nfnet import SqueezeExcite

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", layers.ACTIVATION_GAINS)
def test_activations_keep_unit_variance(name: str) -> None:
    """The gains are estimated from samples, over channels for ``log_softmax`` and ``glu``."""
    x = np.random.default_rng(0).standard_normal((4096, 512), dtype=np.float32)
    y = np.asarray(layers.scaled_activation(name)(jnp.asarray(x)), np.float64)
    assert y.std() == pytest.approx(1, abs=0.005)


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no activation 'swish'; there are celu, .*silu"):
        layers.scaled_activation("swish")


def test_squeeze_excite_starts_as_haikus_layers_do() -> None:
    """A Gaussian of one over the root of the inputs that ends at two of these.

    ``nfnets/base.py`` of deepmind-research leaves the matrices to ``hk.Linear``.
    """
    init, haikus = TruncatedNormal(0.1), hk.initializers.TruncatedNormal(0.1)
    ours, theirs = (
        np.sort(np.ravel(hk.transform(lambda x=x: x((400, 500), jnp.float32)).apply({}, KEY)))
        for x in (init, haikus)
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert ours[0] >= -0.2 and ours[-1] <= 0.2
    params, _ = initialize(lambda x: SqueezeExcite(64, 32)(x), KEY, jnp.zeros((1, 8, 8, 64)))
    w = params["squeeze_excite/~/linear"]["w"]
    assert float(jnp.abs(w).max()) <= 2 / 8
    assert float(jnp.std(w)) == pytest.approx(0.8796 / 8, rel=0.05)


def test_standardized_kernels_have_no_mean_and_the_gains_variance() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(0.3, 2.0, (3, 3, 16, 8)).astype(np.float32)
    gain = rng.uniform(0.5, 2, 8).astype(np.float32)
    weights = np.asarray(layers.standardize(jnp.asarray(kernel), jnp.asarray(gain)))
    np.testing.assert_allclose(weights.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(weights.var((0, 1, 2)) * 144, gain**2, rtol=1e-4)


def test_a_constant_kernel_standardizes_to_zero() -> None:
    weights = layers.standardize(jnp.full((1, 1, 4, 2), 7.0), jnp.ones(2))
    np.testing.assert_array_equal(weights, 0)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 4), (3, 7), (1, 1)])
def test_average_pool_is_the_mean_of_each_windows_pixels(height: int, width: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)
    expected = [
        [x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in range(0, width, 2)]
        for i in range(0, height, 2)
    ]
    pooled = layers.average_pool(jnp.asarray(x))
    np.testing.assert_allclose(pooled, np.asarray(expected).transpose(2, 0, 1, 3), atol=1e-6)


@pytest.mark.parametrize(("size", "first"), [(6, 0), (5, -1)])
def test_max_pool_is_the_largest_of_each_window(size: int, first: int) -> None:
    x = -1 - np.random.default_rng(0).random((2, size, size, 3), dtype=np.float32)
    expected = [
        [x[:, max(i, 0) : i + 3, max(j, 0) : j + 3].max((1, 2)) for j in range(first, size - 1, 2)]
        for i in range(first, size - 1, 2)
    ]
    pooled = layers.max_pool(jnp.asarray(x))
    np.testing.assert_array_equal(pooled, np.asarray(expected).transpose(2, 0, 1, 3))


def test_stochastic_depth_drops_at_its_rates() -> None:
    keep = layers.kept_branches(jax.random.split(jax.random.key(0), 4000), 0.8, blocks=4)
    assert keep is not None
    np.testing.assert_allclose(np.mean(keep, axis=1), [1, 0.8, 0.6, 0.4], atol=0.03)
    assert abs(np.corrcoef(keep[1], keep[2])[0, 1]) < 0.05


def test_dropout_keeps_the_mean() -> None:
    x = jnp.ones((200, 300))
    dropped = np.asarray(layers.dropout(jax.random.split(jax.random.key(0), 200), x, 0.3))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.7)}
    assert dropped.mean() == pytest.approx(1, abs=0.01)
