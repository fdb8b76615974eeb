"""Measures at intervals how hard each parameter is clipped."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfnets_jax import optax_agc
from nfnets_jax.training.units import UNIT_AXES

# The figures of a parameter in the log: the share of its units that are clipped, and quantiles of
# the ratio of gradient norm to weight norm.
_QUANTILES = {"median_ratio": 0.5, "largest_ratio": 1.0}


@dataclasses.dataclass(frozen=True)
class ClippingStats:
    """Measures the clipping of a training step.

    Attributes:
      every: steps from one measurement to the next.
      clipping, eps: as ``optax_agc.adaptive_grad_clip`` takes them.
    """

    every: int
    clipping: float
    eps: float

    def __call__(self, step: jax.Array, grads: chex.ArrayTree, params: chex.ArrayTree) -> jax.Array:
        """Measures a step; between measurements, returns what costs nothing.

        Returns:
          The figures of all parameters and layers, float32 ``[parameters, figures]``, for
          ``figures_of``. They are one array, as each array costs time in every step.
        """

        def measure(now: jax.Array | bool) -> jax.Array:
            statistics = optax_agc.clipping_statistics(
                grads,
                params,
                self.clipping,
                self.eps,
                UNIT_AXES,
                quantiles=tuple(_QUANTILES.values()),
                when=now,
            )
            found = jax.tree.leaves(
                statistics, is_leaf=lambda node: isinstance(node, optax_agc.UnitStatistics)
            )
            clipped = jnp.concatenate([jnp.ravel(each.clipped) for each in found])
            ratios = jnp.concatenate([each.ratios.reshape(-1, len(_QUANTILES)) for each in found])
            return jnp.concatenate([clipped[:, None], ratios], axis=1)

        now = step % self.every == 0
        like = jax.eval_shape(lambda: measure(True))
        # What a branch reads is written to memory. On a GPU the ratios are, and not the gradients.
        return lax.platform_dependent(
            cpu=lambda: lax.cond(now, lambda: measure(True), lambda: jnp.zeros_like(like)),
            default=lambda: measure(now),
        )


def figures_of(rows: np.ndarray, params: chex.ArrayTree) -> chex.ArrayTree:
    """Returns the figures of each parameter.

    Args:
      rows: from ``ClippingStats``.
      params: the parameters; only the shapes matter.

    Returns:
      ``[figures]`` for each parameter, ``[layers, figures]`` for those of equal layers.
    """
    described = optax_agc.describe(params)
    place = 0

    def cut(path: optax_agc.Path, _: Any) -> np.ndarray:
        nonlocal place
        parameter = described[optax_agc.name_of(path)]
        layers = parameter.shape[: UNIT_AXES.layer_axes(parameter)]
        start, place = place, place + math.prod(layers)
        return rows[start:place].reshape(*layers, -1)

    return jax.tree_util.tree_map_with_path(cut, params)


def named_figures(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns ``MODULE/PARAMETER/figure`` for a log, for the figures of unstacked parameters."""
    return {
        f"{module}/{name}/{figure}": float(value)
        for module, parameters in stats.items()
        for name, figures in parameters.items()
        for figure, value in zip(("clipped", *_QUANTILES), figures, strict=True)
    }
