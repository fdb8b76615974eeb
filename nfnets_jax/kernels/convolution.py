"""Convolution in the form that is fastest on the backend at hand.

On GPUs and TPUs the form is XLA's own, except for two kinds of stride 2 on GPUs
(``space_to_depth``). XLA's CPU backend (jax 0.10.2) is fast at matrix products and at dense
convolutions in the forward direction, so on CPUs training takes other forms:

================================  ====================================================  ===========
convolution                       form on a CPU                                         file
================================  ====================================================  ===========
1x1, one group                    matrix product, also in the gradients                 here
depthwise                         sum of shifted images                                 depthwise
3x3, stride 1                     Winograd's products of tiles                          winograd
any other, and groups of any      one dense convolution a group; the kernel's gradient  grouped
                                  is a matrix product of pixels and windows
================================  ====================================================  ===========

Each file says what its form was measured to gain. NFNet-F0's training step is 4.9 times as fast as
with XLA's own convolutions on two CPU threads (docs/speed.md).
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from nfnets_jax.kernels.cpu.depthwise import depthwise_conv2d
from nfnets_jax.kernels.cpu.grouped import grouped_conv2d
from nfnets_jax.kernels.native import native_conv2d
from nfnets_jax.kernels.space_to_depth import conv2d_of_blocks, strided_grouped_conv2d

# Of images; cuDNN's convolutions take channels by eights.
_FEW_CHANNELS = 4


@dataclasses.dataclass(frozen=True)
class Policy:
    """How convolutions are computed; a network gets one when it is created.

    Attributes:
      backend: name of the backend to compute for, as ``jax.default_backend`` names it; None for
        the default backend.
      native: whether every convolution is XLA's own operation, as to count it or to compare.
      in_loop: whether the convolution is in the body of a loop. There XLA's CPU backend has only
        slow gradients, and others take their place.
      rounding: dtype to which the factors of products may be rounded where that is faster; None
        keeps their dtype. It is so in 3x3 convolutions of stride 1, on CPUs that multiply bfloat16.
        Sums, and results, keep the dtype of the images.
      tensorfloat32: whether accelerators may multiply float32 with less precision: GPUs as TF32
        with 10 bits, TPUs as three products of bfloat16. If not, they multiply exactly.
    """

    backend: str | None = None
    native: bool = False
    in_loop: bool = False
    rounding: DTypeLike | None = None
    tensorfloat32: bool = False

    @property
    def for_cpu(self) -> bool:
        """Whether convolutions take the forms for a CPU."""
        return not self.native and (self.backend or jax.default_backend()) == "cpu"

    @property
    def for_gpu(self) -> bool:
        """Whether the network is computed on a GPU."""
        return (self.backend or jax.default_backend()) in ("gpu", "cuda", "rocm")

    def precision_of(self, dtype: DTypeLike) -> lax.Precision | None:
        """Returns the precision of products of a dtype, as ``jax.lax`` takes it."""
        if dtype != jnp.float32:
            return None
        return lax.Precision.HIGH if self.tensorfloat32 else lax.Precision.HIGHEST

    @property
    def cpu_rounding(self) -> DTypeLike | None:
        """``rounding``, where the CPU at hand multiplies the rounded numbers faster."""
        return self.rounding if cpu_multiplies_bfloat16() else None


def conv2d(
    x: jax.Array, kernel: jax.Array, stride: int = 1, policy: Policy | None = None
) -> jax.Array:
    """Convolves images with a kernel, ``SAME`` padding.

    Args:
      x: ``[N, H, W, C]`` images.
      kernel: ``[h, w, C / groups, O]`` in the dtype of ``x``; its shape decides the groups.
      stride: pixels between neighbouring outputs, in both directions.
      policy: how it is computed; the default one if None.

    Returns:
      ``[N, ceil(H / stride), ceil(W / stride), O]``, in the dtype of ``x``.

    Raises:
      ValueError: the kernel's input channels do not divide those of ``x``.
    """
    policy = policy or Policy()
    groups, rest = divmod(x.shape[-1], kernel.shape[2])
    if rest:
        raise ValueError(
            f"a kernel for {kernel.shape[2]} input channels does not divide the {x.shape[-1]} of x"
        )
    if not policy.for_cpu:
        return _conv2d_on_accelerator(x, kernel, stride, groups, policy)
    if kernel.shape[:2] == (1, 1) and groups == 1:
        return _pixelwise(x[:, ::stride, ::stride], kernel)
    if groups == x.shape[-1] == kernel.shape[-1] > 1:
        return depthwise_conv2d(x, kernel, stride)
    return grouped_conv2d(x, kernel, stride, policy.in_loop, policy.cpu_rounding)


def _conv2d_on_accelerator(
    x: jax.Array, kernel: jax.Array, stride: int, groups: int, policy: Policy
) -> jax.Array:
    precision = policy.precision_of(x.dtype)
    height, width = kernel.shape[:2]
    has_blocks = stride == 2 and height == width > 1 and height % 2 == 1
    if policy.for_gpu and not policy.native and has_blocks:
        if x.shape[-1] <= _FEW_CHANNELS:
            return conv2d_of_blocks(x, kernel, groups, precision)
        if 1 < groups < x.shape[-1]:
            return strided_grouped_conv2d(x, kernel, groups, precision)
    return native_conv2d(x, kernel, stride, groups, precision)


def _pixelwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies each pixel by the matrix of a 1x1 kernel."""
    pixels = _product(x.reshape(-1, x.shape[-1]), kernel[0, 0])
    return pixels.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return x @ matrix


def _product_backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix = residuals
    return cotangent @ matrix.T, x.T @ cotangent


_product.defvjp(lambda x, matrix: (x @ matrix, (x, matrix)), _product_backward)


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Returns whether products of bfloat16 take half the time of float32's.

    One such core made 180 GFLOP/s of bfloat16 and 95 of float32.
    """
    try:
        described = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # Not on Linux.
        return False
    return "avx512_bf16" in described
