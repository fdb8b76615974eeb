"""Layers that every family of networks shares."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.initialization import Normal, TruncatedNormal

Activation = Callable[[jax.Array], jax.Array]

_UNSCALED: Mapping[str, Activation] = MappingProxyType(
    {
        "identity": lambda x: x,
        "celu": jax.nn.celu,
        "elu": jax.nn.elu,
        "gelu": jax.nn.gelu,
        "glu": jax.nn.glu,
        "leaky_relu": jax.nn.leaky_relu,
        "log_sigmoid": jax.nn.log_sigmoid,
        "log_softmax": jax.nn.log_softmax,
        "relu": jax.nn.relu,
        "relu6": jax.nn.relu6,
        "selu": jax.nn.selu,
        "sigmoid": jax.nn.sigmoid,
        "silu": jax.nn.silu,
        "soft_sign": jax.nn.soft_sign,
        "softplus": jax.nn.softplus,
        "tanh": jnp.tanh,
    }
)

# 1 / std(f(z)) for z ~ N(0, 1): the constants that the published parameters were trained with.
# They were estimated from samples, so the fourth digit differs from the integral's.
ACTIVATION_GAINS: Mapping[str, float] = MappingProxyType(
    {
        "identity": 1.0,
        "celu": 1.270926833152771,
        "elu": 1.2716004848480225,
        "gelu": 1.7015043497085571,
        "glu": 1.8484294414520264,
        "leaky_relu": 1.70590341091156,
        "log_sigmoid": 1.9193484783172607,
        "log_softmax": 1.0002083778381348,
        "relu": 1.7139588594436646,
        "relu6": 1.7131484746932983,
        "selu": 1.0008515119552612,
        "sigmoid": 4.803835391998291,
        "silu": 1.7881293296813965,
        "soft_sign": 2.338853120803833,
        "softplus": 1.9203323125839233,
        "tanh": 1.5939117670059204,
    }
)


def scaled_activation(name: str) -> Activation:
    """Returns a nonlinearity that keeps the variance of unit Gaussian inputs at one.

    Brock et al. 2021a, arXiv:2101.08692, section 4.3.

    Args:
      name: a key of ``ACTIVATION_GAINS``. ``gelu`` is the tanh approximation, as published; ``glu``
        halves the channels.

    Returns:
      ``x -> gain * f(x)``, elementwise but for ``glu`` and ``log_softmax``, which work on the last
      axis. The dtype of ``x`` is kept.

    Raises:
      ValueError: no such activation.
    """
    function, gain = unscaled_activation(name), ACTIVATION_GAINS[name]

    def scaled(x: jax.Array) -> jax.Array:
        return function(x) * jnp.asarray(gain, x.dtype)

    # Only the input is a residual: to keep more arrays takes longer than to recompute them. Without
    # the barrier XLA would find terms that both passes have in common, and keep them.
    def backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(scaled, lax.optimization_barrier(x))[1](cotangent)

    activation = jax.custom_vjp(scaled)
    activation.defvjp(lambda x: (scaled(x), x), backward)
    return activation


def unscaled_activation(name: str) -> Activation:
    """Returns ``f`` of ``scaled_activation``, for weights that hold the gain already."""
    if name not in _UNSCALED:
        raise ValueError(f"no activation {name!r}; there are {', '.join(sorted(_UNSCALED))}")
    return _UNSCALED[name]


# The gradient is written by hand: with autodiff's, the value and the gradient move half as many
# bytes again, by the count of XLA's CPU backend.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def standardize(kernel: jax.Array, gain: jax.Array, eps: float = 1e-4) -> jax.Array:
    """Standardizes a kernel's weights: scaled weight standardization.

    The weights of each output unit get mean 0 and variance ``gain**2 / fan_in``. A convolution of
    unit-variance inputs then has outputs of variance ``gain**2`` without a mean shift (Brock et al.
    2021a, arXiv:2101.08692, section 4.2).

    Args:
      kernel: ``[..., O]`` float32; the last axis is the output units.
      gain: ``[O]`` float32.
      eps: lower bound of ``variance * fan_in``.

    Returns:
      The standardized kernel, in the shape and dtype of ``kernel``.
    """
    return _standardize_forward(kernel, gain, eps)[0]


def _standardize_forward(
    kernel: jax.Array, gain: jax.Array, eps: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    units = _matrix(kernel)
    mean = jnp.mean(units, axis=0)
    # Both sums take one pass. The means of kernels stay small: their gradients have none.
    spread = jnp.maximum(jnp.sum(units**2, axis=0) - mean**2 * len(units), 0)
    inverse = lax.rsqrt(jnp.maximum(spread, eps))
    scale = gain * inverse
    return kernel * scale - mean * scale, (kernel, gain, mean, spread, inverse)


def _standardize_backward(
    eps: float, residuals: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    kernel, gain, mean, spread, inverse = residuals
    units, unit_cotangents = _matrix(kernel), _matrix(cotangent)
    total = jnp.sum(unit_cotangents, axis=0)
    gain_gradient = (jnp.sum(unit_cotangents * units, axis=0) - mean * total) * inverse
    # At its lower bound the spread does not depend on the weights.
    slope = jnp.where(spread > eps, gain_gradient * inverse, 0)
    offset = total / len(units) - mean * slope
    return gain * inverse * (cotangent - kernel * slope - offset), gain_gradient


def _matrix(kernel: jax.Array) -> jax.Array:
    # XLA's CPU backend sums over three leading axes up to ten times slower. All else keeps the
    # kernel's shape: reshaped, a cotangent of stacked 1x1 kernels would be copied.
    return kernel.reshape(-1, kernel.shape[-1])


standardize.defvjp(_standardize_forward, _standardize_backward)


class Linear(hk.Module):
    """A fully connected layer.

    Parameters, float32: ``w`` ``[I, O]``, which starts Gaussian with standard deviation ``std``, or
    without one as Haiku's does, as a Gaussian of ``I ** -0.5`` that ends at two of these; ``b``
    ``[O]``, which starts at zero.
    """

    def __init__(self, features: int, std: float | None = None, name: str | None = None):
        super().__init__(name)
        self._features = features
        self._std = std

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., I]`` to ``[..., O]``, in the dtype of ``x``."""
        shape = (x.shape[-1], self._features)
        init = TruncatedNormal(shape[0] ** -0.5) if self._std is None else Normal(self._std)
        w = hk.get_parameter("w", shape, init=init)
        b = hk.get_parameter("b", shape[1:], init=jnp.zeros)
        precision = Policy().precision_of(x.dtype)
        return jnp.matmul(x, w.astype(x.dtype), precision=precision) + b.astype(x.dtype)


def average_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[N, H, W, C]`` by the mean over 2x2 windows.

    The last window of an odd height or width holds the pixels that remain, and its mean is theirs.
    """
    examples, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    padded = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    windows = padded.reshape(examples, rows, 2, columns, 2, channels)
    pixels = np.minimum(2, height - 2 * np.arange(rows))[:, None] * np.minimum(
        2, width - 2 * np.arange(columns)
    )
    return jnp.sum(windows, axis=(2, 4)) / pixels[:, :, None].astype(x.dtype)


def sliding_average(x: jax.Array, spacing: int = 1) -> jax.Array:
    """Averages each pixel of ``[N, H, W, C]`` with those right of it, below it and diagonal.

    It is ``average_pool`` at every pixel: where that halves even grids of pixels, the averages of
    these are the same. At the edges the mean is that of the pixels that remain.

    Args:
      x: the images.
      spacing: pixels from one to the next.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        moved = lax.slice_in_dim(x, min(spacing, length), length, axis=axis)
        rest = lax.slice_in_dim(x, length - min(spacing, length), length, axis=axis)
        x = (x + jnp.concatenate([moved, rest], axis)) / 2
    return x


def max_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[N, H, W, C]`` by the maximum over 3x3 windows of stride 2."""
    low = np.asarray(-np.inf, x.dtype)
    return lax.reduce_window(x, low, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def kept_branches(keys: jax.Array | None, rate: float, blocks: int) -> jax.Array | None:
    """Draws the residual branches that stochastic depth keeps.

    Huang et al. 2016, arXiv:1603.09382.

    Args:
      keys: ``[N]`` random keys, one an example; None keeps all branches.
      rate: bound of the blocks' drop rates, which rise to it in equal steps from 0.
      blocks: number of blocks.

    Returns:
      ``[blocks, N]`` booleans; None if all are kept.
    """
    if keys is None or rate == 0:
        return None
    rates = drop_rates(rate, blocks)
    draws = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), rates.shape))(keys)
    return (draws >= rates).T


def drop_rates(rate: float, blocks: int) -> jax.Array:
    """Returns ``[blocks]`` float32: the probability that a block's branch is dropped."""
    return rate * jnp.arange(blocks) / blocks


def dropout(keys: jax.Array | None, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes features of ``x`` ``[N, C]`` with probability ``rate`` and scales up the rest.

    ``keys`` ``[N]`` are random keys, one an example; None keeps all features.
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - rate, x.shape[1:])
    )(keys)
    return jnp.where(keep, x / (1 - rate), 0)
