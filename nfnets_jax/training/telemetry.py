"""How hard each layer is clipped: ratios of gradients to weights, by the unit."""

import dataclasses
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfnets_jax import optax_agc
from nfnets_jax.models.prepare import is_stacked

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

    def __call__(
        self, step: jax.Array, grads: chex.ArrayTree, params: chex.ArrayTree
    ) -> chex.ArrayTree:
        """``measure`` if it is time, else zeros at no cost."""

        def measured() -> chex.ArrayTree:
            return measure(grads, params, self.clipping, self.eps)

        zeros = jax.tree.map(
            lambda figures: jnp.zeros(figures.shape, figures.dtype), jax.eval_shape(measured)
        )
        return lax.cond(step % self.every == 0, measured, lambda: zeros)


def measure(
    grads: Mapping[str, chex.ArrayTree],
    params: Mapping[str, chex.ArrayTree],
    clipping: float,
    eps: float,
) -> chex.ArrayTree:
    """Of each parameter three figures, float32 ``[3]``; of stacked ones of each, ``[layers, 3]``.

    They are the share of its units whose ratio of gradient norm to weight norm is above
    ``clipping``, and the median and the largest ratio of those that are finite.
    """
    ratios = optax_agc.unit_ratios(grads, params, eps, unit_axes=optax_agc.haiku)
    leaves, form = jax.tree.flatten(
        {module: _rows(module, of_module) for module, of_module in ratios.items()}
    )
    # Rows of a length are one array: to sort is much code, for each array anew.
    found: dict[int, list[jax.Array]] = {}
    for units in {leaf.shape[1] for leaf in leaves}:
        same = [leaf for leaf in leaves if leaf.shape[1] == units]
        ends = np.cumsum([len(leaf) for leaf in same])[:-1]
        found[units] = jnp.split(_figures(jnp.concatenate(same), clipping), ends)
    figures = jax.tree.unflatten(form, [found[leaf.shape[1]].pop(0) for leaf in leaves])
    return {
        module: of_module if is_stacked(module) else jax.tree.map(lambda x: x[0], of_module)
        for module, of_module in figures.items()
    }


def _rows(module: str, ratios: chex.ArrayTree) -> chex.ArrayTree:
    """A row a layer."""
    stack = is_stacked(module)
    return jax.tree.map(lambda x: x.reshape(len(x) if stack else 1, -1), ratios)


def _figures(ratios: jax.Array, clipping: float) -> jax.Array:
    """``[rows, 3]`` of ``[rows, units]``."""
    finite = jnp.isfinite(ratios)
    count = jnp.sum(finite, axis=1, keepdims=True)
    ordered = jnp.sort(jnp.where(finite, ratios, jnp.nan), axis=1)  # NaN come last.

    def at(place: jax.Array) -> jax.Array:
        return jnp.take_along_axis(ordered, jnp.maximum(place, 0), axis=1)

    clipped = jnp.mean(finite & (ratios > clipping), axis=1, keepdims=True)
    median = (at((count - 1) // 2) + at(count // 2)) / 2
    return jnp.concatenate([clipped, median, at(count - 1)], axis=1).astype(jnp.float32)


def named(measured: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """``MODULE/PARAMETER/figure`` to its value, of what ``measure`` gave, no longer stacked."""
    return {
        f"{module}/{name}/{figure}": float(value)
        for module, parameters in measured.items()
        for name, row in parameters.items()
        for figure, value in zip(_FIGURES, row, strict=True)
    }
