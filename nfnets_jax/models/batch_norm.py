"""Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167), and convolutions without bias."""

import math

import haiku as hk
import jax
import jax.numpy as jnp
from jax import lax

from nfnets_jax.kernels.convolution import Policy, conv2d
from nfnets_jax.kernels.dilated import dilated_conv2d
from nfnets_jax.models.initialization import Normal


class BatchNorm(hk.Module):
    """Normalizes each channel to the mean ``offset`` and the standard deviation ``scale``.

    Parameters, float32: ``scale`` and ``offset`` ``[C]``. State, float32: ``mean`` and ``variance``
    ``[C]``, moving averages over training batches, for inference.

    Args:
      axis_name: the axis of a ``jax.pmap`` over whose devices batches are normalized together;
        empty normalizes on each device alone.
      initial_scale: initial value of ``scale``.
      decay: of the moving averages, a batch.
      epsilon: added to variances.
    """

    def __init__(
        self,
        axis_name: str = "",
        *,
        initial_scale: float = 1.0,
        decay: float = 0.9,
        epsilon: float = 1e-5,
        name: str | None = None,
    ):
        super().__init__(name)
        self._axis_name = axis_name
        self._initial_scale = initial_scale
        self._decay = decay
        self._epsilon = epsilon

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        """Normalizes ``x`` ``[N, H, W, C]``, in its dtype.

        Training takes the statistics of ``x``, in float32; inference takes the moving averages.
        """
        channels = x.shape[-1:]
        scale = hk.get_parameter(
            "scale", channels, init=hk.initializers.Constant(self._initial_scale)
        )
        offset = hk.get_parameter("offset", channels, init=jnp.zeros)
        mean = hk.get_state("mean", channels, init=jnp.zeros)
        variance = hk.get_state("variance", channels, init=jnp.ones)
        if is_training:
            running, wide = (mean, variance), x.astype(jnp.float32)
            mean, square = jnp.mean(wide, (0, 1, 2)), jnp.mean(wide**2, (0, 1, 2))
            if self._axis_name:
                mean, square = lax.pmean((mean, square), self._axis_name)
            variance = jnp.maximum(square - mean**2, 0)
            for name, old, new in zip(("mean", "variance"), running, (mean, variance), strict=True):
                kept = self._decay * old
                hk.set_state(name, kept + (1 - self._decay) * lax.stop_gradient(new))
        factor = scale * lax.rsqrt(variance + self._epsilon)
        return x * factor.astype(x.dtype) + (offset - mean * factor).astype(x.dtype)


class Conv2D(hk.Module):
    """Convolution without bias, ``SAME`` padding.

    Parameter, float32: ``w`` ``[k, k, I / groups, O]``, which starts Gaussian, with variance
    ``gain**2 * 2`` over the fan-out (He et al. 2015, arXiv:1502.01852). The fan-out of a grouped
    convolution counts all its channels, that of a depthwise one a single channel. A ``dilation``
    above 1 goes with a stride of 1.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        dilation: int = 1,
        gain: float = 1.0,
        policy: Policy | None = None,
        name: str | None = None,
    ):
        super().__init__(name)
        self._policy = policy
        self._channels = channels
        self._kernel = kernel
        self._stride = stride
        self._groups = groups
        self._dilation = dilation
        self._gain = gain

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, H, W, I]`` to ``[N, ceil(H / stride), ceil(W / stride), O]``, in its dtype."""
        kernel, channels, groups = self._kernel, self._channels, self._groups
        fan_out = kernel**2 * (1 if groups == channels else channels)
        shape = (kernel, kernel, x.shape[-1] // groups, channels)
        w = hk.get_parameter("w", shape, init=Normal(self._gain * math.sqrt(2 / fan_out)))
        if self._dilation > 1:
            return dilated_conv2d(x, w.astype(x.dtype), self._dilation, self._policy)
        return conv2d(x, w.astype(x.dtype), self._stride, self._policy)
