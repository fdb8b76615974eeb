"""How hard each layer is clipped: ratios of gradients to weights, by the unit."""

import dataclasses
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfnets_jax import optax_agc

_FIGURES = ("clipped", "median_ratio", "largest_ratio")


@dataclasses.dataclass(frozen=True)
class Look:
    """When to look, and what counts as clipped.

    Attributes:
      every: so many steps.
      clipping, eps: of ``adaptive_grad_clip``.
    """

    every: int
    clipping: float
    eps: float

    def __call__(self, step: jax.Array, grads: chex.ArrayTree, params: chex.ArrayTree) -> jax.Array:
        """``measure`` if it is time, else zeros at no cost."""
        return lax.cond(
            step % self.every == 0,
            lambda: measure(grads, params, self.clipping, self.eps),
            lambda: jnp.zeros((len(jax.tree.leaves(params)), len(_FIGURES)), jnp.float32),
        )


def measure(
    grads: chex.ArrayTree, params: chex.ArrayTree, clipping: float, eps: float
) -> jax.Array:
    """Of each parameter, in the order of the tree's leaves, three figures, ``[P, 3]`` float32.

    They are the share of its units whose ratio of gradient norm to weight norm is above
    ``clipping``, and the median and the largest ratio.
    """
    measured = optax_agc.unit_statistics(grads, params, clipping, eps, quantiles=(0.5, 1))
    figures = jax.tree.leaves(measured, is_leaf=lambda x: isinstance(x, optax_agc.UnitStatistics))
    return jnp.stack([jnp.stack([unit.clipped, *unit.ratios]) for unit in figures])


def named(measured: np.ndarray, params: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """``MODULE/PARAMETER/figure`` to its value, of what ``measure`` gave for the parameters."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = ["/".join(key.key for key in path) for path in paths]
    return {
        f"{name}/{figure}": float(value)
        for name, row in zip(names, measured, strict=True)
        for figure, value in zip(_FIGURES, row, strict=True)
    }
