"""Convolution in the form that the backend at hand runs fastest.

XLA's CPU backend (jax 0.10.2) is fast at matrix products and at dense convolutions going forward.
Five things that training needs all the time are put into those terms:

- A grouped convolution, above all its gradients (jax issue 13800), becomes one dense convolution a
  group, or for narrow groups one for a few of them, with zeros where they do not meet.
- A 3x3 convolution of stride 1 becomes matrix products of fewer multiplications (``winograd``).
- The gradient of other kernels is compiled as a convolution whose kernel is as large as the image.
  It becomes matrix products of pixels with windows, of as many images at a time as the cache holds.
  In the body of a loop, where XLA has no fast convolution for gradients, this holds for all shapes.
- A depthwise convolution becomes a sum of shifted images (``depthwise``).
- A 1x1 convolution becomes a matrix product, gradients and all.

The last is so on every backend; of the others, other backends get the plain operation.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from nfnets_jax.kernels.cpu import winograd
from nfnets_jax.kernels.cpu.depthwise import depthwise_conv2d
from nfnets_jax.kernels.cpu.pooling import max_pool, maximum_and_place, spread
from nfnets_jax.kernels.cpu.portions import in_portions
from nfnets_jax.kernels.loop import opaque_range

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Below either, the native gradient of a kernel is as fast as products, and faster to compile.
_PRODUCT_MIN_PIXELS = 4096
_PRODUCT_MIN_CHANNELS = 16
# Windows that a kernel's gradient is summed from at a time. 128 images of 15 pixels, 64 channels to
# 128, on two CPU threads: 107 GFLOP/s, with 1 MiB 68, all at once 39, natively 51.
_CACHED_BYTES = 8 * 2**20
# Fewer make products too small to gain by. NFNet-F0's step, 8 images of 192 pixels on one CPU
# thread, pairs in one process: 1024 is 1.02 times as fast as 4096, and 256 1.01 times as 1024.
_WINOGRAD_MIN_PIXELS = 1024
_WINOGRAD_MIN_CHANNELS = 32
# Groups narrower than the first are packed to the second. NF-RegNet-B0 on two CPU threads: to 32,
# 64 and 128 channels its gradient compiled in 29, 25 and 9 s, and 43 groups of 8, 8 images of 12
# pixels, took 7, 11 and 16 ms forward and back; 2.8 s natively.
_NARROW_CHANNELS = 32
_PACKED_CHANNELS = 128


_T = TypeVar("_T")
_Arrays = TypeVar("_Arrays")
_in_loop = contextvars.ContextVar("in_loop", default=False)
_plain = contextvars.ContextVar("plain", default=False)
_rounding = contextvars.ContextVar[DTypeLike | None]("rounding", default=None)
_backend = contextvars.ContextVar("backend", default="")


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar[_T], value: _T) -> Iterator[None]:
    before = variable.set(value)
    try:
        yield
    finally:
        variable.reset(before)


@contextlib.contextmanager
def in_loop() -> Iterator[None]:
    """What is traced inside is compiled as a part of a loop's body.

    There XLA's CPU backend has only slow forms of a convolution's gradients, and ``conv2d`` takes
    others. Also a decorator: whatever traces the function, and traces it anew, is told.
    """
    with _set(_in_loop, True):
        yield


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """What is traced inside convolves by XLA's one operation for it, to count or to compare with.

    Also a decorator, as ``in_loop`` is.
    """
    with _set(_plain, True):
        yield


@contextlib.contextmanager
def rounded(dtype: DTypeLike | None) -> Iterator[None]:
    """What is traced inside may round what it multiplies to this dtype, where that is faster.

    Results, and the sums of products, have the dtypes that they would have. It is done in 3x3
    convolutions of stride 1, on CPUs that multiply bfloat16.
    """
    with _set(_rounding, dtype):
        yield


def _cpu_rounding() -> DTypeLike | None:
    return _rounding.get() if _cpu_multiplies_bfloat16() else None


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether products take half the time: on one such core 180 GFLOP/s, of float32 95."""
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # Not on Linux.
        return False
    return "avx512_bf16" in told


@contextlib.contextmanager
def for_backend(name: str) -> Iterator[None]:
    """What is traced inside gets the forms for this backend, whichever is at hand."""
    with _set(_backend, name):
        yield


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves images with a kernel, ``SAME`` padding; grouped where the shapes say so.

    Args:
      x: ``[N, H, W, C]`` images.
      kernel: ``[h, w, C / groups, O]`` in the dtype of ``x``, or ``[C, O]`` of one pixel. The
        number of groups is the ratio of the channels of ``x`` to those of the kernel.
      stride: pixels between neighbouring outputs, in both directions.

    Returns:
      ``[N, ceil(H / stride), ceil(W / stride), O]``, in the dtype of ``x``.

    Raises:
      ValueError: the kernel's input channels do not divide those of ``x``.
    """
    if kernel.ndim == 2:
        kernel = kernel[None, None]
    groups, rest = divmod(x.shape[-1], kernel.shape[2])
    if rest:
        raise ValueError(
            f"a kernel for {kernel.shape[2]} input channels does not divide the {x.shape[-1]} of x"
        )
    if _plain.get():
        return _native(x, kernel, stride, groups)
    if kernel.shape[:2] == (1, 1) and groups == 1:
        x = x[:, ::stride, ::stride]
        pixels = x.reshape(-1, x.shape[-1])
        return _product(pixels, kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])
    if (_backend.get() or jax.default_backend()) != "cpu":
        return _native(x, kernel, stride, groups)
    if groups == x.shape[-1] == kernel.shape[-1] > 1:
        return depthwise_conv2d(x, kernel, stride)
    looped, rounding = _in_loop.get(), _cpu_rounding()
    if groups == 1 or kernel.shape[2] >= _NARROW_CHANNELS:
        return _split(x, kernel, stride, looped, rounding)
    pack = min(groups, _PACKED_CHANNELS // kernel.shape[2])
    # What is left over is a pack of its own: zeros to fill one up would copy all of x.
    rest = groups % pack
    parts = [(slice(None, groups - rest), pack), (slice(groups - rest, None), rest)]
    packed = [
        _split(
            _grouped(x, groups)[..., part, :].reshape(*x.shape[:-1], -1),
            _block_diagonal(_grouped(kernel, groups)[..., part, :], size),
            stride,
            looped,
            rounding,
        )
        for part, size in parts
        if size
    ]
    return jnp.concatenate(packed, axis=-1)


def conv2d_max_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``max_pool`` of ``conv2d``, which on CPUs never leaves the cache; arguments are the same.

    Returns:
      ``[N, ceil(H / 2), ceil(W / 2), O]``, in the dtype of ``x``.
    """
    by_winograd = kernel.shape[2] == x.shape[-1] and _by_winograd(x, kernel, 1)
    if not _plain.get() and by_winograd and (_backend.get() or jax.default_backend()) == "cpu":
        return _winograd_max_pool(x, kernel, _cpu_rounding())
    return max_pool(conv2d(x, kernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd_max_pool(x: jax.Array, kernel: jax.Array, rounding: DTypeLike | None) -> jax.Array:
    return winograd.convolve(x, kernel, rounding, max_pool)


def _winograd_max_pool_forward(
    x: jax.Array, kernel: jax.Array, rounding: DTypeLike | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    x = _rounded(x, rounding)
    maximum, place = winograd.convolve(x, kernel, rounding, maximum_and_place)
    return maximum, (x, kernel, place)


def _winograd_max_pool_backward(
    rounding: DTypeLike | None,
    saved: tuple[jax.Array, jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel, place = saved

    def of_outputs(pooled: tuple[jax.Array, jax.Array]) -> jax.Array:
        return spread(*pooled, *x.shape[1:3])

    pooled = _rounded(gradient, rounding), place
    return winograd.gradients(x, kernel, pooled, rounding, of_outputs)


_winograd_max_pool.defvjp(_winograd_max_pool_forward, _winograd_max_pool_backward)


def _grouped(array: jax.Array, groups: int) -> jax.Array:
    """``[..., C]`` as ``[..., groups, C / groups]``."""
    return array.reshape(*array.shape[:-1], groups, -1)


def _block_diagonal(kernel: jax.Array, pack: int) -> jax.Array:
    """Of a kernel ``[h, w, I, groups, O]`` one with ``pack`` groups in each of its own.

    Returns:
      ``[h, w, pack * I, groups * O]``.
    """
    height, width, inputs, groups, outputs = kernel.shape
    # Few axes: of seven, XLA (jax 0.10.2) crashed in a fused sum of the gradient.
    own = jnp.repeat(jnp.tile(jnp.eye(pack, dtype=kernel.dtype), groups // pack), outputs, axis=1)
    packed = kernel.reshape(height, width, 1, inputs, -1) * own[:, None]
    return packed.reshape(height, width, pack * inputs, groups * outputs)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _split(
    x: jax.Array, kernel: jax.Array, stride: int, looped: bool, rounding: DTypeLike | None
) -> jax.Array:
    """A dense convolution a group, and gradients of kernels that are sums of matrix products."""
    groups = x.shape[-1] // kernel.shape[2]
    if _by_winograd(x, kernel, stride):
        return winograd.convolve(x, kernel, rounding)
    return _join(lambda x, kernel: _native(x, kernel, stride), groups, x, kernel)


def _split_forward(
    x: jax.Array, kernel: jax.Array, stride: int, looped: bool, rounding: DTypeLike | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    if _by_winograd(x, kernel, stride):
        x = _rounded(x, rounding)
    return _split(x, kernel, stride, looped, rounding), (x, kernel)


def _rounded(array: jax.Array, rounding: DTypeLike | None) -> jax.Array:
    """What is only multiplied, as it will be: half the memory to write and read."""
    return array.astype(rounding or array.dtype)


def _split_backward(
    stride: int,
    looped: bool,
    rounding: DTypeLike | None,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    groups = x.shape[-1] // kernel.shape[2]
    if _by_winograd(x, kernel, stride):
        return winograd.gradients(x, kernel, _rounded(gradient, rounding), rounding)
    pixels = gradient.size // gradient.shape[-1]
    by_products = pixels >= _PRODUCT_MIN_PIXELS and kernel.shape[2] >= _PRODUCT_MIN_CHANNELS

    def of_x(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        odd = all(length % 2 for length in kernel.shape[:2])
        if looped and stride == 1 and odd:
            return _native(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), stride)
        return jax.vjp(lambda x: _native(x, kernel, stride), x)[1](gradient)[0]

    def of_kernel(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        if by_products:
            return _kernel_gradient(x, gradient, kernel.shape[:2], stride)
        return jax.vjp(lambda kernel: _native(x, kernel, stride), kernel)[1](gradient)[0]

    x_gradient = _join(of_x, groups, x, kernel, gradient)
    if looped:
        return x_gradient, _kernel_gradient(x, gradient, kernel.shape[:2], stride, groups)
    return x_gradient, _join(of_kernel, groups, x, kernel, gradient)


_split.defvjp(_split_forward, _split_backward)


def _by_winograd(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    groups = x.shape[-1] // kernel.shape[2]
    widest = max(kernel.shape[2], kernel.shape[3] // groups)
    return (
        stride == 1
        and kernel.shape[:2] == (3, 3)
        and isinstance(x.shape[0], int)  # An exported program takes any number of images.
        and math.prod(x.shape[:3]) >= _WINOGRAD_MIN_PIXELS
        and widest >= _WINOGRAD_MIN_CHANNELS
    )


def _join(function: Callable[..., _Arrays], groups: int, *arrays: jax.Array) -> _Arrays:
    """A function of each group of the arrays' channels, their last axis, joined along them."""
    if groups == 1:
        return function(*arrays)

    @jax.jit  # So that it is traced once.
    def of_group(place: jax.Array, *arrays: jax.Array) -> _Arrays:
        parts = [
            lax.dynamic_index_in_dim(
                _grouped(array, groups), place, -2, keepdims=False, allow_negative_indices=False
            )
            for array in arrays
        ]
        return function(*parts)

    found = [of_group(place, *arrays) for place in opaque_range(groups)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *found)


def _kernel_gradient(
    x: jax.Array, gradient: jax.Array, window: tuple[int, ...], stride: int, groups: int = 1
) -> jax.Array:
    """``[h, w, I, O]``: pixels of one array times windows of the other, summed over the images.

    The windows are the gradient's, as the product is wide then; with a stride they are those of
    ``x``. Sums are float32 at least.
    """
    padding = lax.padtype_to_pads(x.shape[1:3], window, (stride, stride), "SAME")
    if stride == 1:
        mirrored = [(high, low) for low, high in padding]
        product = _window_products(gradient, x, window, 1, mirrored, groups)
        product = jnp.flip(product, 2).transpose(2, 1, 0, 3)
    else:
        product = _window_products(x, gradient, window, stride, padding, groups)
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
    """``[groups, pixels' channels, h * w, windows' channels]``, summed over images and pixels."""
    rows, columns = pixels.shape[1:3]
    dtype = jnp.promote_types(pixels.dtype, jnp.float32)
    positions = math.prod(window)

    def seen(part: jax.Array) -> jax.Array:
        padded = jnp.pad(part, ((0, 0), *padding, (0, 0)))
        # By rows, then by columns: two kernels to compile, and fewer copies, than window by window.
        above = [padded[:, top::stride][:, :rows] for top in range(window[0])]
        tall = jnp.stack(above, axis=3)
        beside = [tall[:, :, left::stride][:, :, :columns] for left in range(window[1])]
        return jnp.stack(beside, axis=4).reshape(*beside[0].shape[:3], positions, -1)

    def product(windowed: jax.Array, pixels: jax.Array) -> jax.Array:
        return jnp.einsum(
            "nrcgi,nrckgo->giko",
            _grouped(pixels, groups),
            _grouped(seen(windowed), groups),
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
