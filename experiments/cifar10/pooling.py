"""The maximum over windows of 2x2 pixels, by itself and after a convolution.

XLA's own gradient of a maximum, a scatter, is slow on CPUs. Here the place of the maximum is kept.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from nfnets_jax.kernels.convolution import Policy, conv2d
from nfnets_jax.kernels.cpu import winograd


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[N, H, W, C]`` by the maximum over 2x2 windows.

    The last window of an odd height or width holds the pixels that remain. The gradient goes to the
    first of equal pixels.
    """
    return _maximum_and_place(x)[0]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maximum, place = _maximum_and_place(x)
    # An array of no images holds the size.
    return maximum, (place, x[:0])


def _max_pool_backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array]:
    place, like = residuals
    return (_scatter(cotangent, place, *like.shape[1:3]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def conv2d_max_pool(x: jax.Array, kernel: jax.Array, policy: Policy | None = None) -> jax.Array:
    """Computes ``max_pool`` of ``conv2d``, on CPUs without writing the convolution's output.

    Args:
      x, kernel, policy: as ``conv2d`` takes them.

    Returns:
      ``[N, ceil(H / 2), ceil(W / 2), O]``, in the dtype of ``x``.
    """
    policy = policy or Policy()
    by_winograd = kernel.shape[2] == x.shape[-1] and winograd.is_faster(x, kernel, 1)
    if policy.for_cpu and by_winograd:
        return _winograd_max_pool(x, kernel, policy.cpu_rounding)
    return max_pool(conv2d(x, kernel, policy=policy))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd_max_pool(x: jax.Array, kernel: jax.Array, rounding: DTypeLike | None) -> jax.Array:
    return winograd.convolve(x, kernel, rounding, max_pool)


def _winograd_max_pool_forward(
    x: jax.Array, kernel: jax.Array, rounding: DTypeLike | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    x = winograd.rounded(x, rounding)
    maximum, place = winograd.convolve(x, kernel, rounding, _maximum_and_place)
    return maximum, (x, kernel, place)


def _winograd_max_pool_backward(
    rounding: DTypeLike | None,
    residuals: tuple[jax.Array, jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel, place = residuals

    def scatter(pooled: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _scatter(*pooled, *x.shape[1:3])

    pooled = winograd.rounded(cotangent, rounding), place
    return winograd.gradients(x, kernel, pooled, rounding, scatter)


_winograd_max_pool.defvjp(_winograd_max_pool_forward, _winograd_max_pool_backward)


def _maximum_and_place(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each window, and its place in the window, 0 to 3, int8."""
    rows, columns = x.shape[1] % 2, x.shape[2] % 2
    low = np.asarray(-np.inf, x.dtype)
    x = jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), constant_values=low)
    (a, b), (c, d) = ((x[:, row::2, ::2], x[:, row::2, 1::2]) for row in (0, 1))
    upper, lower = jnp.maximum(a, b), jnp.maximum(c, d)
    place = jnp.where(lower > upper, jnp.where(d > c, 3, 2), jnp.where(b > a, 1, 0))
    return jnp.maximum(upper, lower), place.astype(jnp.int8)


def _scatter(maximum: jax.Array, place: jax.Array, height: int, width: int) -> jax.Array:
    """Puts each maximum at its place in ``[N, height, width, C]``, zeros elsewhere."""
    places = jnp.arange(4, dtype=place.dtype).reshape(2, 1, 2, 1)
    here = place[:, :, None, :, None] == places
    windows = jnp.where(here, maximum[:, :, None, :, None], 0)
    examples, rows, columns, channels = maximum.shape
    return windows.reshape(examples, 2 * rows, 2 * columns, channels)[:, :height, :width]
