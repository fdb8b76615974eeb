"""Elementwise functions that take the place of layer normalization in transformers.

They bound extreme activations as normalization does, but take no statistics.
"""

from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
from jax import lax


class _Pointwise(hk.Module):
    """Computes ``scale * bounded(alpha * x + shift) + offset``, elementwise.

    Parameters, float32: ``alpha`` ``[]``; ``scale`` ``[C]``, which starts at one; ``offset``
    ``[C]``, which starts at zero.
    """

    bounded: Callable[[jax.Array], jax.Array]
    has_shift = False

    def __init__(self, alpha: float = 0.5, name: str | None = None):
        super().__init__(name)
        self._alpha = alpha

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., C]`` to ``[..., C]``, in the dtype of ``x``."""
        channels = x.shape[-1:]
        alpha = hk.get_parameter("alpha", (), init=hk.initializers.Constant(self._alpha))
        inner = alpha.astype(x.dtype) * x
        if self.has_shift:
            inner += hk.get_parameter("shift", (), init=jnp.zeros).astype(x.dtype)
        scale = hk.get_parameter("scale", channels, init=jnp.ones).astype(x.dtype)
        offset = hk.get_parameter("offset", channels, init=jnp.zeros).astype(x.dtype)
        return scale * type(self).bounded(inner) + offset


class DyT(_Pointwise):
    """Dynamic tanh: ``scale * tanh(alpha * x) + offset`` (Zhu et al. 2025, arXiv:2503.10622).

    Its section 4 starts ``alpha`` at 0.5. Parameters are ``alpha`` ``[]``, ``scale`` and ``offset``
    ``[C]``, float32.
    """

    bounded = staticmethod(jnp.tanh)


class Derf(_Pointwise):
    """Dynamic erf: ``scale * erf(alpha * x + shift) + offset`` (Chen et al. 2025).

    The function is equation 10 of arXiv:2512.10938. Parameters are ``alpha`` and ``shift`` ``[]``,
    which start at 0.5 and 0, and ``scale`` and ``offset`` ``[C]``, float32.
    """

    bounded = staticmethod(lax.erf)
    has_shift = True
