"""Convolution in the form that the backend at hand runs fastest.

XLA's CPU backend (jax 0.10.2) is fast at matrix products and at dense convolutions going forward.
Three things that training needs all the time are put into those terms:

- A grouped convolution, above all its gradients (jax issue 13800), becomes one dense convolution a
  group.
- The gradient of a kernel is compiled as a convolution whose kernel is as large as the image. It
  becomes one matrix product a kernel position, of the image shifted to it with the gradient.
- A 1x1 convolution of stride 1 becomes a matrix product, gradients and all.

Other backends get the plain operation.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Below either, the native gradient of a kernel is as fast as the products, and faster to compile.
_SHIFTED_MIN_PIXELS = 4096
_SHIFTED_MIN_CHANNELS = 32


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, *, looped: bool = False) -> jax.Array:
    """Convolves images with a kernel, ``SAME`` padding; grouped where the shapes say so.

    Args:
      x: ``[N, H, W, C]`` images.
      kernel: ``[h, w, C / groups, O]`` in the dtype of ``x``. The number of groups is the ratio of
        the channels of ``x`` to those of the kernel.
      stride: pixels between neighbouring outputs, in both directions.
      looped: whether this is compiled as the body of a loop, where XLA's CPU backend has only slow
        forms of a convolution's gradients.

    Returns:
      ``[N, ceil(H / stride), ceil(W / stride), O]``, in the dtype of ``x``.

    Raises:
      ValueError: the kernel's input channels do not divide those of ``x``.
    """
    groups, rest = divmod(x.shape[-1], kernel.shape[2])
    if rest:
        raise ValueError(
            f"a kernel for {kernel.shape[2]} input channels does not divide the {x.shape[-1]} of x"
        )
    if kernel.shape[:2] == (1, 1) and stride == 1 and groups == 1:
        pixels = x.reshape(-1, x.shape[-1])
        return _product(pixels, kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])
    if jax.default_backend() != "cpu":
        return _native(x, kernel, stride, groups)
    if groups == 1:
        return _dense(x, kernel, stride, looped)
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([_dense(part, k, stride, looped) for part, k in parts], axis=-1)


@jax.custom_vjp
def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return x @ matrix


def _product_backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix = saved
    return gradient @ matrix.T, x.T @ gradient


_product.defvjp(lambda x, matrix: (x @ matrix, (x, matrix)), _product_backward)


def _native(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x: jax.Array, kernel: jax.Array, stride: int, looped: bool) -> jax.Array:
    """A convolution of one group whose kernel's gradient is a sum of matrix products."""
    return _native(x, kernel, stride)


def _dense_forward(
    x: jax.Array, kernel: jax.Array, stride: int, looped: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _native(x, kernel, stride), (x, kernel)


def _dense_backward(
    stride: int, looped: bool, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    if looped and stride == 1:
        x_gradient = _native(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), stride)
    else:
        _, pull_x = jax.vjp(lambda x: _native(x, kernel, stride), x)
        (x_gradient,) = pull_x(gradient)
    pixels = gradient.size // gradient.shape[-1]
    if looped or (pixels >= _SHIFTED_MIN_PIXELS and x.shape[-1] >= _SHIFTED_MIN_CHANNELS):
        kernel_gradient = _kernel_gradient(x, gradient, kernel.shape[:2], stride)
    else:
        _, pull_kernel = jax.vjp(lambda kernel: _native(x, kernel, stride), kernel)
        (kernel_gradient,) = pull_kernel(gradient)
    return x_gradient, kernel_gradient


_dense.defvjp(_dense_forward, _dense_backward)


def _kernel_gradient(
    x: jax.Array, gradient: jax.Array, window: tuple[int, ...], stride: int
) -> jax.Array:
    """``[h, w, I, O]``: a position of the window at a time, what it saw times the gradient."""
    (height, width), (rows, columns) = window, gradient.shape[1:3]
    padding = lax.padtype_to_pads(x.shape[1:3], window, (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    flat = gradient.reshape(-1, gradient.shape[-1])

    def product(i: int, j: int) -> jax.Array:
        seen = padded[:, i::stride, j::stride][:, :rows, :columns]
        return seen.reshape(-1, x.shape[-1]).T @ flat

    products = [product(i, j) for i in range(height) for j in range(width)]
    return jnp.stack(products).reshape(*window, x.shape[-1], gradient.shape[-1])
