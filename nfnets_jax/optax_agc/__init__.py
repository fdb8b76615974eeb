"""Adaptive Gradient Clipping for any JAX project; needs jax and optax alone.

AGC (Brock et al. 2021, arXiv:2102.06171, section 4) bounds how far one step can move a unit of a
layer, as a share of the norm of its weights. ``unit_axes=haiku``, ``flax``, ``equinox`` or
``pytorch`` knows a framework's layers.

Example:
  >>> import jax.numpy as jnp
  >>> import optax
  >>> from nfnets_jax import optax_agc
  >>> agc = optax_agc.adaptive_grad_clip(0.01, unit_axes=optax_agc.haiku)
  >>> optimizer = optax.chain(agc, optax.sgd(0.1))
  >>> params = {"linear": {"w": jnp.ones((4, 2))}}
  >>> updates, state = optimizer.update(params, optimizer.init(params), params)
"""

from nfnets_jax.optax_agc.clipping import (
    Clipping,
    Mask,
    ScheduleState,
    adaptive_grad_clip,
    global_norm,
    unit_ratios,
)
from nfnets_jax.optax_agc.recipes import (
    adamw_agc,
    all_but,
    all_but_classifier,
    kernels,
    sgd_agc,
)
from nfnets_jax.optax_agc.statistics import (
    StatisticsState,
    UnitStatistics,
    clipping_statistics,
    summarize,
    with_statistics,
)
from nfnets_jax.optax_agc.units import (
    Axes,
    Convention,
    Parameter,
    Path,
    UnitAxes,
    describe,
    equinox,
    flax,
    haiku,
    name_of,
    pytorch,
)

__all__ = [
    "Axes",
    "Clipping",
    "Convention",
    "Mask",
    "Parameter",
    "Path",
    "ScheduleState",
    "StatisticsState",
    "UnitAxes",
    "UnitStatistics",
    "adamw_agc",
    "adaptive_grad_clip",
    "all_but",
    "all_but_classifier",
    "clipping_statistics",
    "describe",
    "equinox",
    "flax",
    "global_norm",
    "haiku",
    "kernels",
    "name_of",
    "pytorch",
    "sgd_agc",
    "summarize",
    "unit_ratios",
    "with_statistics",
]
