"""Depthwise convolution, of each channel by itself, as sums of shifted images times numbers.

XLA's CPU backend (jax 0.10.2) has only slow forms of it. A training step of EfficientNet-B0, 8
images of 224 pixels, took 0.77 s on two threads, and 6.3 s by ``benchmarks.train_step --plain``,
with XLA's own convolutions throughout.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves each channel with a kernel of its own, ``SAME`` padding.

    Args:
      x: ``[N, H, W, C]`` images.
      kernel: ``[h, w, 1, C]`` in the dtype of ``x``.
      stride: pixels between neighbouring outputs, in both directions.

    Returns:
      ``[N, ceil(H / stride), ceil(W / stride), C]``, in the dtype of ``x``; sums are in float32.
    """
    return _valid(_padded(x, kernel, stride), kernel, stride)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_conv2d(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    # Where the kernel took steps, zeros stand between the gradient's pixels.
    spread = [
        (size - 1 - low, length + low - 1 - (count - 1) * stride, stride - 1)
        for size, length, count, (low, _) in zip(
            kernel.shape[:2],
            x.shape[1:3],
            gradient.shape[1:3],
            _padding(x, kernel, stride),
            strict=True,
        )
    ]
    zero = jnp.zeros((), gradient.dtype)
    dilated = lax.pad(gradient, zero, [(0, 0, 0), *spread, (0, 0, 0)])
    x_gradient = _valid(dilated, jnp.flip(kernel, (0, 1)), 1)
    return x_gradient, _kernel_gradient(x, kernel, gradient, stride)


depthwise_conv2d.defvjp(_forward, _backward)


def _padding(x: jax.Array, kernel: jax.Array, stride: int) -> list[tuple[int, int]]:
    return list(lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME"))


def _padded(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), *_padding(x, kernel, stride), (0, 0)))


def _valid(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution without padding."""
    height, width = kernel.shape[:2]
    seen = x[:, : x.shape[1] - height + 1, : x.shape[2] - width + 1]
    rows, columns = -(-seen.shape[1] // stride), -(-seen.shape[2] // stride)
    wide, weights = x.astype(jnp.float32), kernel.astype(jnp.float32)
    total = sum(
        _from(wide, (i, j), (rows, columns), stride) * weights[i, j, 0]
        for i in range(height)
        for j in range(width)
    )
    return jnp.asarray(total).astype(x.dtype)


def _from(x: jax.Array, start: tuple[int, int], count: tuple[int, int], stride: int) -> jax.Array:
    """Of ``x`` so many rows and columns, ``stride`` apart."""
    (i, j), (rows, columns) = start, count
    return x[
        :, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride
    ]


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int
) -> jax.Array:
    """``[h, w, 1, C]``: a row of the gradient at a time, while it and what it saw are in cache.

    At one go the same sums took four times as long.
    """
    (height, width), (rows, columns) = kernel.shape[:2], gradient.shape[1:3]
    padded = _padded(x, kernel, stride)

    def add_row(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        given = lax.dynamic_slice_in_dim(gradient, row, 1, axis=1).astype(jnp.float32)
        seen = lax.dynamic_slice_in_dim(padded, row * stride, height, axis=1)
        seen = seen.astype(jnp.float32)
        sums = [
            jnp.sum(_from(seen, (i, j), (1, columns), stride) * given, axis=(0, 1, 2))
            for i in range(height)
            for j in range(width)
        ]
        return total + jnp.stack(sums), None

    zeros = jnp.zeros((height * width, x.shape[-1]), jnp.float32)
    total, _ = lax.scan(add_row, zeros, jnp.arange(rows))
    return total.reshape(kernel.shape).astype(kernel.dtype)
