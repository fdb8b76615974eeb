import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.cifar10 import pooling


@pytest.mark.parametrize("size", [6, 7])
def test_max_pool_equals_lax_in_value_and_gradient(size: int) -> None:
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


# By Winograd's products, a few images at a time and all at once; two images are too few for them.
@pytest.mark.parametrize(("images", "size"), [(40, 32), (16, 9), (2, 7)])
def test_convolved_and_pooled_equals_lax(images: int, size: int) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((images, size, size, 24)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((3, 3, 24, 32)) / 15, jnp.float32)

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)
        window, padding = (1, 2, 2, 1), ((0, 0), (0, size % 2), (0, size % 2), (0, 0))
        return lax.reduce_window(y, -jnp.inf, lax.max, window, window, padding)

    expected, pull_expected = jax.vjp(plain, x, w)
    actual, pull_actual = jax.vjp(pooling.conv2d_max_pool, x, w)
    np.testing.assert_allclose(pooling.conv2d_max_pool(x, w), actual)
    cotangent = jnp.asarray(rng.standard_normal(expected.shape), jnp.float32)
    for a, b in zip(
        (actual, *pull_actual(cotangent)), (expected, *pull_expected(cotangent)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))
