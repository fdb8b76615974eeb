"""Grouped convolution as dense ones, and the kernel's gradient as products of matrices.

XLA's CPU backend (jax 0.10.2) computes a grouped convolution, above all its gradients, slowly (jax
issue 13800): NFNet-F0's training step was 15.6 s with them and 4.4 s with one dense convolution a
group. It compiles the gradient of a kernel as a convolution whose kernel is as large as the image;
products of pixels with windows are faster. 3x3 convolutions of stride 1 are Winograd's.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from nfnets_jax.kernels.cpu import winograd
from nfnets_jax.kernels.cpu.portions import in_portions
from nfnets_jax.kernels.loop import opaque_range
from nfnets_jax.kernels.native import native_conv2d

# Below either, the native gradient of a kernel is as fast as products, and faster to compile.
_PRODUCT_MIN_PIXELS = 4096
_PRODUCT_MIN_CHANNELS = 16
# Size of the windows that a kernel's gradient is summed from at a time. 128 images of 15 pixels, 64
# to 128 channels, two CPU threads: 107 GFLOP/s, with 1 MiB 68, all at once 39, natively 51.
_CACHED_BYTES = 8 * 2**20
# Narrower groups are packed to the second width. NF-RegNet-B0 on two CPU threads: packed to 32, 64
# and 128 channels its gradient compiled in 29, 25 and 9 s, and 43 groups of 8, 8 images of 12
# pixels, took 7, 11 and 16 ms forward and back; 2.8 s natively.
_NARROW_CHANNELS = 32
_PACKED_CHANNELS = 128

_Arrays = TypeVar("_Arrays")


def grouped_conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, in_loop: bool, rounding: DTypeLike | None
) -> jax.Array:
    """Convolves ``x`` ``[N, H, W, C]`` with ``[h, w, C / groups, O]``, ``SAME`` padding.

    Args:
      x, kernel, stride: as ``conv2d`` takes them.
      in_loop: whether the gradients are those that are fast in the body of a loop.
      rounding: dtype of Winograd's factors; None for the dtype of ``x``.
    """
    groups = _group_count(x, kernel)
    if groups == 1 or kernel.shape[2] >= _NARROW_CHANNELS:
        return _dense_per_group(x, kernel, stride, in_loop, rounding)
    pack = min(groups, _PACKED_CHANNELS // kernel.shape[2])
    # The groups left over are a narrower pack: zeros to fill one would copy all of x.
    rest = groups % pack
    parts = [(slice(None, groups - rest), pack), (slice(groups - rest, None), rest)]
    packed = [
        _dense_per_group(
            _by_group(x, groups)[..., part, :].reshape(*x.shape[:-1], -1),
            _block_diagonal(_by_group(kernel, groups)[..., part, :], size),
            stride,
            in_loop,
            rounding,
        )
        for part, size in parts
        if size
    ]
    return jnp.concatenate(packed, axis=-1)


def _group_count(x: jax.Array, kernel: jax.Array) -> int:
    return x.shape[-1] // kernel.shape[2]


def _by_group(array: jax.Array, groups: int) -> jax.Array:
    """Reshapes ``[..., C]`` to ``[..., groups, C / groups]``."""
    return array.reshape(*array.shape[:-1], groups, -1)


def _block_diagonal(kernel: jax.Array, pack: int) -> jax.Array:
    """Packs ``pack`` groups of a kernel ``[h, w, I, groups, O]`` into one, zeros between them.

    Returns:
      ``[h, w, pack * I, groups * O]``.
    """
    height, width, inputs, groups, outputs = kernel.shape
    # Few axes: with seven, XLA (jax 0.10.2) crashed in a fused sum of the gradient.
    own = jnp.repeat(jnp.tile(jnp.eye(pack, dtype=kernel.dtype), groups // pack), outputs, axis=1)
    packed = kernel.reshape(height, width, 1, inputs, -1) * own[:, None]
    return packed.reshape(height, width, pack * inputs, groups * outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dense_per_group(
    x: jax.Array, kernel: jax.Array, stride: int, in_loop: bool, rounding: DTypeLike | None
) -> jax.Array:
    if winograd.is_faster(x, kernel, stride):
        return winograd.convolve(x, kernel, rounding)
    groups = _group_count(x, kernel)
    return _map_groups(lambda x, kernel: native_conv2d(x, kernel, stride), groups, x, kernel)


def _dense_per_group_forward(
    x: jax.Array, kernel: jax.Array, stride: int, in_loop: bool, rounding: DTypeLike | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    if winograd.is_faster(x, kernel, stride):
        x = winograd.rounded(x, rounding)
    return _dense_per_group(x, kernel, stride, in_loop, rounding), (x, kernel)


def _dense_per_group_backward(
    stride: int,
    in_loop: bool,
    rounding: DTypeLike | None,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    if winograd.is_faster(x, kernel, stride):
        return winograd.gradients(x, kernel, winograd.rounded(cotangent, rounding), rounding)
    groups, window = _group_count(x, kernel), kernel.shape[:2]
    pixels = cotangent.size // cotangent.shape[-1]
    by_products = pixels >= _PRODUCT_MIN_PIXELS and kernel.shape[2] >= _PRODUCT_MIN_CHANNELS

    def x_gradient(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        if in_loop and stride == 1 and all(length % 2 for length in window):
            mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
            return native_conv2d(cotangent, mirrored, stride)
        return jax.vjp(lambda x: native_conv2d(x, kernel, stride), x)[1](cotangent)[0]

    def kernel_gradient(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        if by_products:
            return _kernel_gradient_by_products(x, cotangent, window, stride)
        return jax.vjp(lambda kernel: native_conv2d(x, kernel, stride), kernel)[1](cotangent)[0]

    of_x = _map_groups(x_gradient, groups, x, kernel, cotangent)
    if in_loop:
        return of_x, _kernel_gradient_by_products(x, cotangent, window, stride, groups)
    return of_x, _map_groups(kernel_gradient, groups, x, kernel, cotangent)


_dense_per_group.defvjp(_dense_per_group_forward, _dense_per_group_backward)


def _map_groups(function: Callable[..., _Arrays], groups: int, *arrays: jax.Array) -> _Arrays:
    """Applies a function to each group of the arrays' channels, and joins its results' channels."""
    if groups == 1:
        return function(*arrays)

    @jax.jit  # It is traced once.
    def apply_to_group(place: jax.Array, *arrays: jax.Array) -> _Arrays:
        parts = [
            lax.dynamic_index_in_dim(
                _by_group(array, groups), place, -2, keepdims=False, allow_negative_indices=False
            )
            for array in arrays
        ]
        return function(*parts)

    results = [apply_to_group(place, *arrays) for place in opaque_range(groups)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *results)


def _kernel_gradient_by_products(
    x: jax.Array, cotangent: jax.Array, window: tuple[int, ...], stride: int, groups: int = 1
) -> jax.Array:
    """Returns the kernel's gradient ``[h, w, I, O]``, summed in float32 or wider.

    Pixels of one array are multiplied by windows of the other. The windows are the cotangent's, as
    the product is wide then; with a stride they are those of ``x``.
    """
    padding = lax.padtype_to_pads(x.shape[1:3], window, (stride, stride), "SAME")
    if stride == 1:
        mirrored = [(high, low) for low, high in padding]
        product = _window_products(cotangent, x, window, 1, mirrored, groups)
        product = jnp.flip(product, 2).transpose(2, 1, 0, 3)
    else:
        product = _window_products(x, cotangent, window, stride, padding, groups)
        product = product.transpose(2, 3, 0, 1)
    return product.reshape(*window, x.shape[-1] // groups, -1).astype(x.dtype)


def _window_products(
    windowed: jax.Array,
    pixels: jax.Array,
    window: tuple[int, ...],
    stride: int,
    padding: Sequence[tuple[int, int]],
    groups: int,
) -> jax.Array:
    """Sums products of pixels and windows over images and pixels.

    Returns:
      ``[groups, channels of pixels, h * w, channels of windowed]``.
    """
    rows, columns = pixels.shape[1:3]
    dtype = jnp.promote_types(pixels.dtype, jnp.float32)
    positions = math.prod(window)

    def windows(part: jax.Array) -> jax.Array:
        padded = jnp.pad(part, ((0, 0), *padding, (0, 0)))
        # Rows first, then columns: two kernels to compile, and fewer copies than window by window.
        above = [padded[:, top::stride][:, :rows] for top in range(window[0])]
        tall = jnp.stack(above, axis=3)
        beside = [tall[:, :, left::stride][:, :, :columns] for left in range(window[1])]
        return jnp.stack(beside, axis=4).reshape(*beside[0].shape[:3], positions, -1)

    def product(windowed: jax.Array, pixels: jax.Array) -> jax.Array:
        return jnp.einsum(
            "nrcgi,nrckgo->giko",
            _by_group(pixels, groups),
            _by_group(windows(windowed), groups),
            preferred_element_type=dtype,
        )

    bytes_an_image = positions * rows * columns * windowed.shape[-1] * windowed.dtype.itemsize
    _, total = in_portions(
        lambda windowed, pixels: ((), product(windowed, pixels)),
        _CACHED_BYTES,
        bytes_an_image,
        windowed,
        pixels,
    )
    return total
