import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nfnets_jax.kernels.cpu import pooling


@pytest.mark.parametrize("size", [6, 7])
def test_max_pool_is_that_of_lax_in_value_and_gradient(size: int) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, size, size, 3)), jnp.float32)

    def plain(x: jax.Array) -> jax.Array:
        pad = ((0, 0), (0, size % 2), (0, size % 2), (0, 0))
        maximum = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), pad)
        return maximum

    expected, pull_expected = jax.vjp(plain, x)
    actual, pull = jax.vjp(pooling.max_pool, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    cotangent = jnp.asarray(rng.standard_normal(expected.shape), jnp.float32)
    np.testing.assert_allclose(pull(cotangent)[0], pull_expected(cotangent)[0], rtol=1e-6)


def test_the_first_of_equal_pixels_gets_the_gradient() -> None:
    x = jnp.asarray([[0.0, 1.0], [1.0, 1.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: pooling.max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient.reshape(2, 2), [[0, 1], [0, 0]])
