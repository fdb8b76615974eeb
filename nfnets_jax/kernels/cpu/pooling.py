"""The maximum over windows of 2x2 pixels, and where it was."""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[N, H, W, C]`` by the maximum over 2x2 windows.

    Of an odd height or width the last window holds what is left. The gradient goes to the first of
    equal pixels. XLA's own, a scatter, is slow on CPUs.
    """
    return maximum_and_place(x)[0]


def maximum_and_place(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``max_pool`` of ``x``, and of each maximum the place in its window, 0 to 3, int8."""
    rows, columns = x.shape[1] % 2, x.shape[2] % 2
    low = np.asarray(-np.inf, x.dtype)
    x = jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)), constant_values=low)
    (a, b), (c, d) = ((x[:, row::2, ::2], x[:, row::2, 1::2]) for row in (0, 1))
    upper, lower = jnp.maximum(a, b), jnp.maximum(c, d)
    place = jnp.where(lower > upper, jnp.where(d > c, 3, 2), jnp.where(b > a, 1, 0))
    return jnp.maximum(upper, lower), place.astype(jnp.int8)


def spread(maximum: jax.Array, place: jax.Array, height: int, width: int) -> jax.Array:
    """``[N, height, width, C]``: each maximum at its place, elsewhere zeros."""
    places = jnp.arange(4, dtype=place.dtype).reshape(2, 1, 2, 1)
    here = place[:, :, None, :, None] == places
    windows = jnp.where(here, maximum[:, :, None, :, None], 0)
    examples, rows, columns, channels = maximum.shape
    return windows.reshape(examples, 2 * rows, 2 * columns, channels)[:, :height, :width]


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maximum, place = maximum_and_place(x)
    # An array of no images tells the size.
    return maximum, (place, x[:0])


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    place, like = saved
    return (spread(gradient, place, *like.shape[1:3]),)


max_pool.defvjp(_forward, _backward)
