"""Measures at intervals how hard each parameter is clipped."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from nfnets_jax import optax_agc

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

    def __call__(
        self, step: jax.Array, grads: chex.ArrayTree, params: chex.ArrayTree
    ) -> chex.ArrayTree:
        """Measures a step; between measurements, returns zeros at no cost.

        Returns:
          For each parameter the figures that ``named_figures`` names, float32 ``[figures]``; for
          stacked ones ``[layers, figures]``. They are one array, as each array costs time in
          every step.
        """

        def measure() -> chex.ArrayTree:
            statistics = optax_agc.clipping_statistics(
                grads,
                params,
                self.clipping,
                self.eps,
                optax_agc.haiku,
                quantiles=tuple(_QUANTILES.values()),
            )
            return jax.tree.map(
                lambda seen: jnp.concatenate([seen.clipped[..., None], seen.ratios], axis=-1),
                statistics,
                is_leaf=lambda node: isinstance(node, optax_agc.UnitStatistics),
            )

        zeros = jax.tree.map(
            lambda figures: jnp.zeros(figures.shape, figures.dtype), jax.eval_shape(measure)
        )
        return lax.cond(step % self.every == 0, measure, lambda: zeros)


def named_figures(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns ``MODULE/PARAMETER/figure`` for a log, for the figures of unstacked parameters."""
    return {
        f"{module}/{name}/{figure}": float(value)
        for module, parameters in stats.items()
        for name, figures in parameters.items()
        for figure, value in zip(("clipped", *_QUANTILES), figures, strict=True)
    }
