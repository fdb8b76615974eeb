"""How hard each parameter is clipped, measured every so many steps."""

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
        """Returns ``optax_agc.clipping_statistics``; zeros, at no cost, between measurements."""

        def measure() -> chex.ArrayTree:
            return optax_agc.clipping_statistics(
                grads,
                params,
                self.clipping,
                self.eps,
                optax_agc.haiku,
                quantiles=tuple(_QUANTILES.values()),
            )

        zeros = jax.tree.map(
            lambda figures: jnp.zeros(figures.shape, figures.dtype), jax.eval_shape(measure)
        )
        return lax.cond(step % self.every == 0, measure, lambda: zeros)


def named_figures(statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns ``MODULE/PARAMETER/figure`` for a log, for the statistics of unstacked parameters."""
    return {
        f"{module}/{name}/{figure}": float(value)
        for module, parameters in statistics.items()
        for name, seen in parameters.items()
        for figure, value in zip(
            ("clipped", *_QUANTILES), (seen.clipped, *seen.ratios), strict=True
        )
    }
