"""How hard each parameter is clipped: ratios of gradients to weights, by the unit."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nfnets_jax.optax_agc.clipping import (
    Clipping,
    Leaf,
    Mask,
    check_numbers,
    is_float0,
    leaves_of,
    limit_of,
    unit_norms,
)
from nfnets_jax.optax_agc.units import UnitAxes, name_of


class UnitStatistics(NamedTuple):
    """Statistics of one parameter's units at one step.

    Attributes:
      units: their number, float32.
      clipped: share of them whose ratio is above ``clipping``, float32.
      ratios: quantiles of the ratio of gradient norm to weight norm, float32 ``[levels]``.
      nonfinite: number of units whose gradient was not finite, int32.
    """

    units: jax.Array
    clipped: jax.Array
    ratios: jax.Array
    nonfinite: jax.Array


def clipping_statistics(
    gradients: optax.Updates,
    params: optax.Params,
    clipping: Clipping = 0.01,
    eps: float = 1e-3,
    unit_axes: UnitAxes | None = None,
    mask: Mask | None = None,
    *,
    quantiles: Sequence[float] = (0.5, 0.9, 1.0),
    when: jax.Array | bool = True,
) -> Any:
    """Returns ``UnitStatistics`` in the form of the gradients.

    Where a ``Convention`` recognizes a first axis that counts equal layers, each layer has its own:
    the fields have a leading axis ``[layers]``.

    Args:
      gradients, params: of one step.
      clipping, eps, unit_axes, mask: what counts as clipped, as in ``adaptive_grad_clip``.
      quantiles: levels of the ratios' quantiles, between 0 and 1.
      when: whether to compute the quantiles, which sort the units; if not, they are 0.
    """
    check_numbers(clipping, eps)
    leaves = leaves_of(gradients, params, unit_axes, mask)
    levels = jnp.asarray(quantiles, jnp.float32)
    limits = [limit_of(leaf, clipping, None) for leaf in leaves]
    layers = [leaf.param.shape[: leaf.layer_axes] for leaf in leaves]
    rows = [
        ratios.reshape(math.prod(shape), -1)
        for ratios, shape in zip(_finite_ratios(leaves, eps), layers, strict=True)
    ]
    found = iter(
        jax.tree.map(lambda field, shape=shape: field.reshape(*shape, *field.shape[1:]), each)
        for each, shape in zip(_statistics(rows, limits, levels, when), layers, strict=True)
    )
    return jax.tree.map(lambda x: x if is_float0(x) else next(found), gradients)


class StatisticsState(NamedTuple):
    """The state of ``with_statistics``.

    Attributes:
      step: steps so far, int32 ``[]``.
      levels: of the quantiles, float32 ``[levels]``.
      parameters: ``UnitStatistics`` in the form of the parameters; ``nonfinite`` counts all steps.
      inner: the optimizer's own state.
    """

    step: jax.Array
    levels: jax.Array
    parameters: Any
    inner: optax.OptState


def with_statistics(
    optimizer: optax.GradientTransformation,
    clipping: Clipping = 0.01,
    eps: float = 1e-3,
    unit_axes: UnitAxes | None = None,
    mask: Mask | None = None,
    *,
    quantiles: Sequence[float] = (0.5, 0.9, 1.0),
    every: int = 1,
    partition_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer and keeps in its state how hard the incoming gradients would be clipped.

    Nothing leaves the device until ``summarize`` is called. Under ``jax.jit`` XLA computes the
    norms once for this and for the clipping inside ``optimizer``. It clips nothing itself: around
    an optimizer without AGC it shows what AGC would do.

    Args:
      optimizer: any, such as ``sgd_agc(0.1)``.
      clipping, eps, unit_axes, mask, partition_specs: what counts as clipped, as in
        ``adaptive_grad_clip``. Parameters that the mask spares have ratios, none of them clipped.
      quantiles: levels of the ratios' quantiles, between 0 and 1.
      every: steps from one computation of the quantiles, which sort the units, to the next;
        all else is of every step.
    """
    check_numbers(clipping, eps)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> StatisticsState:
        levels = jnp.asarray(quantiles, jnp.float32)
        # Each field is an array of its own, so that the state can be donated.
        parameters = jax.tree.map(
            lambda _: UnitStatistics(
                jnp.zeros(()), jnp.zeros(()), jnp.zeros(levels.shape), jnp.zeros((), jnp.int32)
            ),
            params,
        )
        return StatisticsState(jnp.zeros((), jnp.int32), levels, parameters, inner.init(params))

    def update(
        updates: optax.Updates,
        state: StatisticsState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, StatisticsState]:
        leaves = leaves_of(updates, params, unit_axes, mask, partition_specs)
        now = {
            name_of(path): statistics
            for path, statistics in jax.tree_util.tree_leaves_with_path(
                state.parameters, is_leaf=_is_statistics
            )
        }
        before = [now[leaf.name] for leaf in leaves]
        limits = [limit_of(leaf, clipping, state.step) for leaf in leaves]
        rows = [ratios.reshape(1, -1) for ratios in _finite_ratios(leaves, eps)]

        is_due = True if every == 1 else state.step % every == 0
        found = _statistics(
            rows, limits, state.levels, is_due, [old.ratios[None] for old in before]
        )
        for leaf, old, rows_found in zip(leaves, before, found, strict=True):
            new = UnitStatistics(*(field[0] for field in rows_found))
            now[leaf.name] = new._replace(nonfinite=old.nonfinite + new.nonfinite)
        parameters = jax.tree.unflatten(
            jax.tree.structure(state.parameters, is_leaf=_is_statistics), now.values()
        )
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        step = optax.safe_increment(state.step)
        return updates, StatisticsState(step, state.levels, parameters, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def summarize(state: optax.OptState) -> dict[str, float]:
    """Returns figures for a log, from the ``with_statistics`` in an optimizer's state.

    Returns:
      On the host, for each parameter ``NAME/clipped``, ``NAME/nonfinite`` and
      ``NAME/ratio_pLEVEL``, LEVEL in percent; and of all units together ``clipped`` and
      ``nonfinite``.

    Raises:
      ValueError: there is no such state, or more than one.
    """
    found = [
        leaf
        for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, StatisticsState))
        if isinstance(leaf, StatisticsState)
    ]
    if len(found) != 1:
        raise ValueError(f"summarize: the state has {len(found)} of with_statistics, not one")
    parameters, levels = jax.device_get((found[0].parameters, found[0].levels))
    figures, units, clipped, nonfinite = {}, 0.0, 0.0, 0
    for path, statistics in jax.tree_util.tree_leaves_with_path(parameters, is_leaf=_is_statistics):
        name = name_of(path)
        figures[f"{name}/clipped"] = float(statistics.clipped)
        for level, ratio in zip(levels, statistics.ratios, strict=True):
            figures[f"{name}/ratio_p{100 * level:g}"] = float(ratio)
        figures[f"{name}/nonfinite"] = float(statistics.nonfinite)
        units += statistics.units
        clipped += statistics.units * statistics.clipped
        nonfinite += statistics.nonfinite
    return {"clipped": float(clipped / max(units, 1)), "nonfinite": float(nonfinite), **figures}


def _is_statistics(x: Any) -> bool:
    return isinstance(x, UnitStatistics)


def _finite_ratios(leaves: Sequence[Leaf], eps: float) -> list[jax.Array]:
    """Returns each leaf's ratios, float32; NaN where the gradient is not finite."""
    ratios = []
    for leaf, (gradient_norm, weight_norm) in zip(leaves, unit_norms(leaves), strict=True):
        ratio = gradient_norm / jnp.maximum(weight_norm, eps)
        finite = jnp.where(jnp.isfinite(gradient_norm), ratio, jnp.nan)
        ratios.append(_gather(finite, leaf).astype(jnp.float32))
    return ratios


def _gather(ratio: jax.Array, leaf: Leaf) -> jax.Array:
    """Adds the ratios of units on other devices."""
    for axis, names in enumerate(leaf.parts):
        if names and axis not in leaf.axes:
            # The result of a sum is known to be the same everywhere.
            shape = (lax.axis_size(names), *ratio.shape)
            ratio = lax.psum(jnp.zeros(shape).at[lax.axis_index(names)].set(ratio), names)
            ratio = jnp.concatenate(list(ratio), axis)
    return ratio


def _statistics(
    arrays: Sequence[jax.Array],
    limits: Sequence[Any],
    levels: jax.Array,
    when: jax.Array | bool = True,
    otherwise: Sequence[jax.Array] | None = None,
) -> list[UnitStatistics]:
    """Computes the statistics of ratios.

    Rows of a length are worked on together: each sort that is compiled is much code, and networks
    have some thousand arrays.

    Args:
      arrays: ``[layers, units]``, NaN where the gradient is not finite.
      limits: for each array, the ratio above which a unit is clipped; None clips none.
      levels: of the quantiles.
      when: whether to compute the quantiles.
      otherwise: quantiles of each array, ``[layers, levels]``, if not; None for zeros.

    Returns:
      The statistics of each array, with a leading axis of layers.
    """
    lengths = sorted({array.shape[1] for array in arrays})
    places = [[at for at, x in enumerate(arrays) if x.shape[1] == units] for units in lengths]
    rows = [jnp.concatenate([arrays[at] for at in same]) for same in places]
    kept = [jnp.zeros((len(each), len(levels))) for each in rows]
    if otherwise is not None:
        kept = [jnp.concatenate([otherwise[at] for at in same]) for same in places]

    def sort() -> list[jax.Array]:
        return [_row_quantiles(each, levels) for each in rows]

    quantiles = sort() if when is True else lax.cond(when, sort, lambda: kept)
    found: dict[int, UnitStatistics] = {}
    for same, each, ratios in zip(places, rows, quantiles, strict=True):
        bounds = [
            jnp.full((len(arrays[at]), 1), jnp.inf if limits[at] is None else limits[at])
            for at in same
        ]
        units = each.shape[1]
        above = jnp.sum(each > jnp.concatenate(bounds), axis=1) / max(units, 1)
        together = UnitStatistics(
            units=jnp.full(len(each), units, jnp.float32),
            clipped=above.astype(jnp.float32),
            ratios=ratios,
            nonfinite=jnp.sum(jnp.isnan(each), axis=1, dtype=jnp.int32),
        )
        start = 0
        for at in same:
            end = start + len(arrays[at])
            found[at] = UnitStatistics(*(field[start:end] for field in together))
            start = end
    return [found[at] for at in range(len(arrays))]


def _row_quantiles(rows: jax.Array, levels: jax.Array) -> jax.Array:
    """Interpolates the quantiles ``[rows, levels]`` of ``[rows, units]``; NaN are left out."""
    if not rows.shape[1]:
        return jnp.zeros((len(rows), len(levels)))
    count = jnp.sum(~jnp.isnan(rows), axis=1, keepdims=True)
    ordered = jnp.sort(rows, axis=1)  # NaN come last.
    place = levels * jnp.maximum(count - 1, 0)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(count - 1, 0))

    def at(index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(ordered, index, axis=1)

    return at(low) + (place - low) * (at(high) - at(low))
