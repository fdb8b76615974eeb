"""Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

import haiku as hk
import jax
import jax.numpy as jnp
from jax import lax

_DECAY = 0.9
_EPSILON = 1e-5


class BatchNorm(hk.Module):
    """Gives each channel the mean ``offset`` and the standard deviation ``scale``.

    Parameters, float32: ``scale`` and ``offset`` ``[C]``. State, float32: ``mean`` and ``variance``
    ``[C]``, averages over training batches that forget a tenth a batch, for use in inference.
    """

    def __init__(self, axis_name: str = "", initial_scale: float = 1.0, name: str | None = None):
        super().__init__(name)
        self._axis_name = axis_name
        self._initial_scale = initial_scale

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        """Normalizes ``x`` ``[N, H, W, C]``, in its dtype; the statistics are taken in float32.

        In training they are those of ``x``, with an ``axis_name`` of all devices along that axis of
        a ``jax.pmap``.
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
                hk.set_state(name, _DECAY * old + (1 - _DECAY) * lax.stop_gradient(new))
        factor = scale * lax.rsqrt(variance + _EPSILON)
        return x * factor.astype(x.dtype) + (offset - mean * factor).astype(x.dtype)
