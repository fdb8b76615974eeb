"""What normalizer-free networks are built of.

Each module owns its parameters, in float32, and hands them out through ``weights``: the arrays that
the computation uses, already standardized and in the compute dtype. What is then done with them is
a plain function. The split lets a network prepare its weights once and use them many times.

References: "NF-ResNets" is Brock et al. 2021a, arXiv:2101.08692; "NFNets" Brock et al. 2021b,
arXiv:2102.06171.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfnets_jax.kernels.convolution import conv2d
from nfnets_jax.models.initialization import Normal

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
# Each was sampled, so the fourth digit differs from the integral's.
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
    """A nonlinearity that maps unit Gaussian input to unit variance (NF-ResNets, section 4.3).

    Args:
      name: a key of ``ACTIVATION_GAINS``. ``gelu`` is the tanh approximation, as published;
        ``glu`` halves the channels.

    Returns:
      ``x -> gain * f(x)``, elementwise but for ``glu`` and ``log_softmax``, which work on the last
      axis. The dtype of ``x`` is kept.

    Raises:
      ValueError: no such activation.
    """
    function, gain = unscaled_activation(name), ACTIVATION_GAINS[name]
    # Its input is all that is kept for the gradient: arrays kept cost more time than arithmetic.
    return jax.checkpoint(lambda x: function(x) * jnp.asarray(gain, x.dtype))


def unscaled_activation(name: str) -> Activation:
    """``f`` of ``scaled_activation``, for where the constant is in the weights that come next."""
    if name not in _UNSCALED:
        raise ValueError(f"no activation {name!r}; there are {', '.join(sorted(_UNSCALED))}")
    return _UNSCALED[name]


# The gradient is written out because with autodiff's, value and gradient move half as many bytes
# again, by the count of XLA's CPU backend.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def standardize(kernel: jax.Array, gain: jax.Array, eps: float = 1e-4) -> jax.Array:
    """Scaled weight standardization (NF-ResNets, section 4.2).

    Every output unit's weights get mean 0 and variance ``gain**2 / fan_in``, so that a convolution
    of unit-variance inputs gives outputs of variance ``gain**2`` and no mean shift.

    Args:
      kernel: ``[..., O]`` float32; the last axis counts the output units.
      gain: ``[O]`` float32.
      eps: lower bound of ``variance * fan_in``.

    Returns:
      The standardized kernel, shape and dtype of ``kernel``.
    """
    return _standardize_forward(kernel, gain, eps)[0]


def _standardize_forward(
    kernel: jax.Array, gain: jax.Array, eps: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    units = _matrix(kernel)
    mean = jnp.mean(units, axis=0)
    spread = jnp.var(units, axis=0) * len(units)
    inverse = lax.rsqrt(jnp.maximum(spread, eps))
    scale = gain * inverse
    return kernel * scale - mean * scale, (kernel, gain, mean, spread, inverse)


def _standardize_backward(
    eps: float, saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    kernel, gain, mean, spread, inverse = saved
    units, of_units = _matrix(kernel), _matrix(gradient)
    total = jnp.sum(of_units, axis=0)
    gain_gradient = (jnp.sum(of_units * units, axis=0) - mean * total) * inverse
    # At its lower bound the spread does not depend on the weights.
    slope = jnp.where(spread > eps, gain_gradient * inverse, 0)
    offset = total / len(units) - mean * slope
    return gain * inverse * (gradient - kernel * slope - offset), gain_gradient


def _matrix(kernel: jax.Array) -> jax.Array:
    # To sum over three leading axes takes XLA's CPU backend up to ten times longer. All else is
    # done in the kernel's own shape: reshaped, a gradient of stacked 1x1 kernels would be copied.
    return kernel.reshape(-1, kernel.shape[-1])


standardize.defvjp(_standardize_forward, _standardize_backward)


class ScaledKernel(NamedTuple):
    """What a convolution learns: ``w`` ``[k, k, I / groups, O]``, ``gain`` and ``bias`` ``[O]``."""

    w: jax.Array
    gain: jax.Array
    bias: jax.Array

    def weights(self, dtype: jnp.dtype) -> "Affine":
        """The kernel, standardized, and the bias, in ``dtype``; of one pixel, a matrix."""
        w = standardize(self.w, self.gain)
        w = w[0, 0] if w.shape[:2] == (1, 1) else w
        return Affine(w.astype(dtype), self.bias.astype(dtype))


class Affine(NamedTuple):
    """A linear map as applied: ``kernel`` is ``[h, w, I, O]`` or ``[I, O]``, ``bias`` ``[O]``."""

    kernel: jax.Array
    bias: jax.Array

    def weights(self, dtype: jnp.dtype) -> "Affine":
        """The same in ``dtype``."""
        return Affine(self.kernel.astype(dtype), self.bias.astype(dtype))


class WSConv2D(hk.Module):
    """Convolution with scaled weight standardization, a gain and a bias a channel.

    Parameters, all float32: ``w`` ``[k, k, I / groups, O]``, ``gain`` ``[O]``, ``bias`` ``[O]``.
    The kernel is standardized in float32 whatever the compute dtype.
    """

    def __init__(
        self,
        input_channels: int,
        output_channels: int,
        kernel_size: int,
        groups: int = 1,
        name: str | None = None,
    ):
        super().__init__(name)
        if input_channels % groups or output_channels % groups:
            raise ValueError(
                f"{groups} groups do not divide {input_channels} input channels and "
                f"{output_channels} output channels"
            )
        self._kernel_shape = (kernel_size, kernel_size, input_channels // groups, output_channels)

    def parameters(self) -> ScaledKernel:
        """The arrays that are learned."""
        channels = self._kernel_shape[-1:]
        initial = Normal(math.prod(self._kernel_shape[:-1]) ** -0.5)
        return ScaledKernel(
            w=hk.get_parameter("w", self._kernel_shape, init=initial),
            gain=hk.get_parameter("gain", channels, init=jnp.ones),
            bias=hk.get_parameter("bias", channels, init=jnp.zeros),
        )


class Linear(hk.Module):
    """A matrix ``w`` ``[I, O]`` and a bias ``b`` ``[O]``, float32.

    ``w`` starts Gaussian, with standard deviation ``std`` or else ``I ** -0.5``; ``b`` at zero.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        std: float | None = None,
        name: str | None = None,
    ):
        super().__init__(name)
        self._shape = (input_size, output_size)
        self._std = input_size**-0.5 if std is None else std

    def parameters(self) -> Affine:
        """The arrays that are learned."""
        return Affine(
            kernel=hk.get_parameter("w", self._shape, init=Normal(self._std)),
            bias=hk.get_parameter("b", self._shape[1:], init=jnp.zeros),
        )


class SqueezeExcite(hk.Module):
    """Two layers that weigh channels by what all pixels say (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, hidden: int, name: str | None = None):
        super().__init__(name)
        self._squeeze = Linear(channels, hidden, name="linear")
        self._excite = Linear(hidden, channels, name="linear_1")

    def parameters(self) -> tuple[Affine, Affine]:
        """What the squeezing and the exciting layer learn."""
        return self._squeeze.parameters(), self._excite.parameters()


def convolve(weights: Affine, x: jax.Array, stride: int = 1) -> jax.Array:
    """``[N, H, W, I]`` to ``[N, ceil(H / stride), ceil(W / stride), O]``, ``SAME`` padding."""
    return conv2d(x, weights.kernel, stride) + weights.bias


def convolve_activated(
    weights: Affine,
    x: jax.Array,
    activation: Activation,
    stride: int = 1,
) -> jax.Array:
    """``convolve`` of the activated ``x``, which alone is kept for the gradient."""

    @jax.checkpoint
    def convolved(weights: Affine, x: jax.Array) -> jax.Array:
        return convolve(weights, activation(x), stride)

    return convolved(weights, x)


def linear(weights: Affine, x: jax.Array) -> jax.Array:
    """``[N, I]`` to ``[N, O]``."""
    return x @ weights.kernel + weights.bias


def squeeze_excite(
    weights: tuple[Affine, Affine], x: jax.Array, activation: Activation = jax.nn.relu
) -> jax.Array:
    """``[N, C]``, the factors for the channels of ``x`` ``[N, H, W, C]``, from 0 to 1."""
    squeeze, excite = weights
    pooled = jnp.mean(x, axis=(1, 2))
    return jax.nn.sigmoid(linear(excite, activation(linear(squeeze, pooled))))


def average_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[N, H, W, C]`` by the mean over 2x2 windows.

    Of an odd height or width the last window holds what is left, and its mean is over that.
    """
    examples, height, width, channels = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    padded = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    windows = padded.reshape(examples, rows, 2, columns, 2, channels)
    pixels = np.minimum(2, height - 2 * np.arange(rows))[:, None] * np.minimum(
        2, width - 2 * np.arange(columns)
    )
    return jnp.sum(windows, axis=(2, 4)) / pixels[:, :, None].astype(x.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """Halves height and width of ``[N, H, W, C]`` by the maximum over 3x3 windows, two apart."""
    low = np.asarray(-np.inf, x.dtype)
    return lax.reduce_window(x, low, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def survivors(keys: jax.Array | None, rate: float, blocks: int) -> jax.Array | None:
    """Which residual branches stochastic depth keeps (Huang et al. 2016, arXiv:1603.09382).

    Args:
      keys: ``[N]`` random keys, one an example; None keeps all.
      rate: probability of dropping, to which the blocks' rates rise in equal steps from 0.
      blocks: how many there are.

    Returns:
      ``[blocks, N]`` booleans; None if all are kept.
    """
    if keys is None or rate == 0:
        return None
    rates = drop_rates(rate, blocks)
    draws = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), rates.shape))(keys)
    return (draws >= rates).T


def drop_rates(rate: float, blocks: int) -> jax.Array:
    """``[blocks]`` float32: of each block, the probability that its branch is dropped."""
    return rate * jnp.arange(blocks) / blocks


def dropout(keys: jax.Array | None, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes features of ``x`` ``[N, C]`` with probability ``rate`` and scales up the rest.

    ``keys`` ``[N]`` are random keys, one an example; None keeps all.
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - rate, x.shape[1:])
    )(keys)
    return jnp.where(keep, x / (1 - rate), 0)
