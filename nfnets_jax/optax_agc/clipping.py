"""Adaptive Gradient Clipping as an optax gradient transformation."""

import functools
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nfnets_jax.optax_agc.units import UnitAxes, axes_of, describe, name_of, with_paths

Limit = float | jax.Array | Callable[[jax.Array], Any]
Clipping = Limit | Mapping[str, Limit | None]
Mask = Any | Callable[[optax.Params], Any]


# Leaves whose norms one kernel takes on a GPU. AGC of NFNet-F0's 233 arrays, compiled for an H100,
# is 150 kernels with 8 of them and 112 with 16; optax's is 676. Each element looks for its leaf.
_LEAVES_IN_KERNEL = 8


class ScheduleState(NamedTuple):
    """The state of ``adaptive_grad_clip`` by a schedule: the steps so far, int32 ``[]``."""

    step: jax.Array


def adaptive_grad_clip(
    clipping: Clipping = 0.01,
    eps: float = 1e-3,
    unit_axes: UnitAxes | None = None,
    mask: Mask | None = None,
    *,
    partition_specs: Any = None,
) -> optax.GradientTransformation:
    """Clips each unit's gradient to ``clipping`` times the norm of the unit's weights.

    With ``W_i`` the weights of unit ``i`` and ``G_i`` their gradient,

        ``G_i <- G_i * min(1, clipping * max(|W_i|, eps) / |G_i|)``

    It equals ``optax.adaptive_grad_clip`` where both are defined. A unit whose gradient is not
    finite passes unchanged; ``with_statistics`` counts such units.

    Args:
      clipping: largest ratio of a unit's gradient norm to its weight norm: a number, a schedule of
        the step, or a mapping of regular expressions to either. In a mapping, the first expression
        found in the parameter's name (``layer/kernel``) decides, and None does not clip.
      eps: lower bound of the weight norm, so that a unit at zero can leave it; 0 keeps it there.
      unit_axes: the axes that run inside a unit, over which norms are taken: ``haiku``, ``flax``,
        ``equinox`` or ``pytorch``; a function ``(path, parameter) -> axes``; or axes for all
        parameters. If it is None or returns None, the rank decides as in optax: all axes of a
        scalar or a vector, all but the last of ``[I, O]`` matrices, HWIO and DHWIO kernels, the
        first of three.
      mask: a tree of booleans in the form of the parameters or of their upper part, or a function
        from the parameters to it; true where to clip. None clips all. ``all_but_classifier`` is
        the paper's.
      partition_specs: inside ``jax.shard_map`` only, the parameters' ``PartitionSpec``s, a tree as
        ``mask``; a unit that is split over devices is then measured whole. ``jax.jit`` does so
        without it.

    Returns:
      A transformation whose ``update`` needs the parameters. It has no state unless ``clipping`` is
      a schedule. Norms are taken in float32 or wider; the dtypes of the gradients are kept. Weights
      whose squared norm overflows count as infinitely long.

    Raises:
      ValueError: ``clipping`` is a number that is not above 0, or ``eps`` one below 0. In
        ``update``, naming the parameter: no parameters, trees or shapes that differ, axes out of
        range, units that are not recognized, no ``clipping`` for a name.

    References:
      Brock et al. 2021, arXiv:2102.06171, section 4.
    """
    check_numbers(clipping, eps)

    def init(params: optax.Params) -> optax.OptState:
        del params
        return ScheduleState(jnp.zeros((), jnp.int32)) if has_schedule else optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        leaves = leaves_of(updates, params, unit_axes, mask, partition_specs)
        step = state.step if has_schedule else None
        clipped = iter(_clip(leaves, clipping, eps, step))
        updates = jax.tree.map(lambda x: x if is_float0(x) else next(clipped), updates)
        return updates, ScheduleState(optax.safe_increment(step)) if has_schedule else state

    values = clipping.values() if isinstance(clipping, Mapping) else [clipping]
    has_schedule = any(map(callable, values))
    return optax.GradientTransformation(init, update)


def unit_ratios(
    gradients: optax.Updates,
    params: optax.Params,
    eps: float = 1e-3,
    unit_axes: UnitAxes | None = None,
) -> Any:
    """Returns each unit's ratio of gradient norm to weight norm, which clipping is compared with.

    Args:
      gradients, params, eps, unit_axes: as ``adaptive_grad_clip`` takes them.

    Returns:
      Ratios in the form of the gradients, float32 or wider, with axes of length 1 where norms were
      taken.
    """
    norms = unit_norms(leaves_of(gradients, params, unit_axes))
    ratios = (gradient / jnp.maximum(weight, eps) for gradient, weight in norms)
    return jax.tree.map(lambda x: x if is_float0(x) else next(ratios), gradients)


class Leaf(NamedTuple):
    """A gradient with its parameter.

    Attributes:
      name: of the parameter.
      gradient, param: the arrays.
      axes: axes that run inside a unit.
      layer_axes: number of first axes that count equal layers, as far as a convention knows.
      masked: whether the mask spares it.
      parts: for each axis, the names of the mesh axes that it is split over.
    """

    name: str
    gradient: jax.Array
    param: jax.Array
    axes: tuple[int, ...]
    layer_axes: int
    masked: bool
    parts: tuple[tuple[str, ...], ...]

    def mesh_axes(self) -> tuple[str, ...]:
        """Returns the mesh axes that units are split over."""
        return tuple(name for axis in self.axes for name in self.parts[axis])


def leaves_of(
    gradients: optax.Updates,
    params: optax.Params | None,
    unit_axes: UnitAxes | None,
    mask: Mask | None = None,
    partition_specs: Any = None,
) -> list[Leaf]:
    """Returns the gradients in the order of ``jax.tree.leaves``.

    Left out are those that are None, and of integers: ``float0``.

    Raises:
      ValueError: as ``adaptive_grad_clip``.
    """
    if params is None:
        raise ValueError(
            "adaptive gradient clipping compares gradients with parameters: call "
            "update(gradients, state, params)"
        )
    by_path = {name_of(path): (path, jnp.asarray(x)) for path, x in with_paths(params)}
    named = {name_of(path): jnp.asarray(x) for path, x in with_paths(gradients) if not is_float0(x)}
    if lost := [name for name in named if name not in by_path]:
        raise ValueError(f"there are gradients without parameters: {', '.join(lost)}")
    absent = {
        name_of(path)
        for path, x in with_paths(gradients, none_is_leaf=True)
        if x is None or is_float0(x)
    }
    if lost := [name for name in by_path if name not in named and name not in absent]:
        raise ValueError(f"there are parameters without gradients: {', '.join(lost)}")
    spared = _spared(params, mask)
    specs = _mesh_axes(params, partition_specs)
    described = describe(params)
    count_layers = getattr(unit_axes, "layer_axes", lambda _: 0)
    leaves = []
    for name, gradient in named.items():
        path, param = by_path[name]
        if gradient.shape != param.shape:
            raise ValueError(f"{name}: gradient {gradient.shape}, but parameter {param.shape}")
        axes = axes_of(path, param, unit_axes, described)
        layer_axes = count_layers(described[name])
        parts = specs.get(name, ((),) * param.ndim)
        leaves.append(Leaf(name, gradient, param, axes, layer_axes, name in spared, parts))
    return leaves


def is_float0(x: Any) -> bool:
    """Returns whether it is what JAX gives as the gradient of integers."""
    return getattr(x, "dtype", None) == jax.dtypes.float0


def check_numbers(clipping: Clipping | None, eps: float) -> None:
    """Checks what is known of ``clipping`` and ``eps`` before any gradient is.

    Raises:
      ValueError: as ``adaptive_grad_clip``.
    """
    of_names: Mapping[str, Any] = clipping if isinstance(clipping, Mapping) else {"": clipping}
    for pattern, value in of_names.items():
        # Not below: a comparison with NaN is false.
        if isinstance(value, numbers.Real) and not float(value) > 0:
            of_name = f" of {pattern!r}" if pattern else ""
            raise ValueError(
                f"clipping{of_name} is {value}; it takes a number above 0, or a mask where nothing "
                "is to be clipped"
            )
    smallest: Any = eps
    if isinstance(smallest, numbers.Real) and not 0 <= float(smallest) < math.inf:
        raise ValueError(f"eps is {eps}; it takes a number from 0 on")


def _spared(params: optax.Params, mask: Mask | None) -> set[str]:
    """Returns the names of the parameters that a mask spares."""
    if mask is None:
        return set()
    full = jax.tree.broadcast(mask(params) if callable(mask) else mask, params)
    return {name_of(path) for path, clips in with_paths(full) if not clips}


def _mesh_axes(params: optax.Params, specs: Any) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Returns, by name and axis, the mesh axes that a parameter is split over."""
    if specs is None:
        return {}

    def is_spec(x: Any) -> bool:
        return isinstance(x, jax.sharding.PartitionSpec)

    full = jax.tree.broadcast(specs, params, is_leaf=is_spec)
    named = jax.tree_util.tree_leaves_with_path(full, is_leaf=is_spec)
    ranks = {name_of(path): jnp.ndim(param) for path, param in with_paths(params)}
    parts = {
        name_of(path): [(x,) if isinstance(x, str) else tuple(x or ()) for x in spec]
        for path, spec in named
    }
    return {name: (*by, *[()] * (ranks[name] - len(by))) for name, by in parts.items()}


def global_norm(
    gradients: optax.Updates, params: optax.Params, unit_axes: UnitAxes | None = None
) -> jax.Array:
    """Returns the norm of all gradients together, float32 ``[]``, from the norms of their units.

    In a step that clips, those are at hand. It equals ``optax.tree.norm``.

    Args:
      gradients, params, unit_axes: as ``adaptive_grad_clip`` takes them.
    """
    norms = unit_norms(leaves_of(gradients, params, unit_axes))
    # The barrier keeps XLA from summing the squares of the gradients themselves.
    units = lax.optimization_barrier([jnp.ravel(gradient) for gradient, _ in norms])
    return jnp.linalg.norm(jnp.concatenate(units)).astype(jnp.float32)


def unit_norms(leaves: Sequence[Leaf]) -> list[tuple[jax.Array, jax.Array]]:
    """Returns the norms of each leaf's units: of gradients, and of weights.

    They are float32 or wider, with axes of length 1 where they were taken.
    """
    # The squares of a huge gradient overflow; those of a smaller copy do not. In a branch such a
    # gradient is read once more. A GPU would wait for the host there, but sums both in one kernel.
    return lax.platform_dependent(
        default=lambda: norms_by_branch(leaves),
        cuda=lambda: norms_by_shape(leaves),
        rocm=lambda: norms_by_shape(leaves),
    )


def norms_by_branch(leaves: Sequence[Leaf]) -> list[tuple[jax.Array, jax.Array]]:
    """Takes the norms of ``unit_norms``, of huge gradients in a branch."""

    def gradient_sums(shrunk: bool) -> list[jax.Array]:
        return [_sum_squares(leaf.gradient, leaf.axes, leaf.mesh_axes(), shrunk) for leaf in leaves]

    weights = [_root(_sum_squares(leaf.param, leaf.axes, leaf.mesh_axes())) for leaf in leaves]
    sums = gradient_sums(shrunk=False)
    # The largest sum, and not the sum of all, for which XLA would square the gradients once more.
    largest = jnp.zeros(())
    for total in sums:
        largest = jnp.maximum(largest, jnp.max(total, initial=0).astype(jnp.float32))
    finite = jnp.isfinite(largest)
    if names := tuple(sorted({name for leaf in leaves for name in leaf.mesh_axes()})):
        # ``pmin`` takes only what varies over all its axes; the index does.
        varying = finite & (lax.axis_index(names) >= 0)
        finite = lax.pmin(varying.astype(jnp.int32), names) > 0
    gradients = lax.cond(
        finite,
        lambda: list(map(_root, sums)),
        lambda: list(map(_norm, sums, gradient_sums(shrunk=True))),
    )
    return list(zip(gradients, weights, strict=True))


def norms_by_shape(leaves: Sequence[Leaf]) -> list[tuple[jax.Array, jax.Array]]:
    """Takes the norms of ``unit_norms``, of leaves of equal shapes together."""
    found: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        kind = (leaf.gradient.shape, leaf.gradient.dtype, leaf.param.dtype, leaf.axes, leaf.parts)
        found.setdefault(kind, []).append(place)
    norms: dict[int, tuple[jax.Array, jax.Array]] = {}
    for places in found.values():
        for start in range(0, len(places), _LEAVES_IN_KERNEL):
            some = places[start : start + _LEAVES_IN_KERNEL]
            norms |= zip(some, _norms_together([leaves[place] for place in some]), strict=True)
    return [norms[place] for place in range(len(leaves))]


def _norms_together(leaves: Sequence[Leaf]) -> list[tuple[jax.Array, jax.Array]]:
    """Takes the norms of leaves of equal shapes."""
    axes, rank = leaves[0].axes, leaves[0].param.ndim
    dtype = _common(leaves[0].gradient.real.dtype, leaves[0].param.real.dtype)
    mesh_axes = leaves[0].mesh_axes()
    if len(leaves) == 1 and axes == tuple(range(rank - len(axes), rank)):
        # XLA sums rows three times in one kernel, but not columns.
        (leaf,) = leaves
        total = _sum_squares(leaf.gradient, axes, mesh_axes)
        shrunk = _sum_squares(leaf.gradient, axes, mesh_axes, shrunk=True)
        return [(_norm(total, shrunk), _root(_sum_squares(leaf.param, axes, mesh_axes)))]
    # Both sums of an array are one, of complex numbers, and the sums of all arrays are one.
    pairs = [
        lax.complex(_squares(leaf.gradient, dtype), _squares(leaf.gradient, dtype, shrunk=True))
        for leaf in leaves
    ]
    of_params = [_squares(leaf.param, dtype) for leaf in leaves]
    pairs += [lax.complex(squares, squares) for squares in of_params]
    sums = jnp.sum(jnp.stack(pairs), [axis + 1 for axis in axes], keepdims=True)
    sums = lax.psum(sums, mesh_axes) if mesh_axes else sums
    norms = _norm(jnp.real(sums), jnp.imag(sums))
    return list(zip(norms[: len(leaves)], norms[len(leaves) :], strict=True))


# Jitted functions are traced once for each shape: networks have some thousand leaves.
@functools.partial(jax.jit, static_argnames=("axes", "mesh_axes", "shrunk"))
def _sum_squares(
    x: jax.Array, axes: tuple[int, ...], mesh_axes: tuple[str, ...], shrunk: bool = False
) -> jax.Array:
    """Sums squares over the axes of a unit, on all devices that it is split over."""
    total = jnp.sum(_squares(x, x.real.dtype, shrunk), axis=axes, keepdims=True)
    return lax.psum(total, mesh_axes) if mesh_axes else total


def _squares(x: jax.Array, dtype: Any, shrunk: bool = False) -> jax.Array:
    """Returns squares in a real dtype, but float32 or wider; those of a smaller copy if shrunk."""
    real = _common(dtype, jnp.float32)
    wide = x.astype(_common(real, jnp.complex64) if jnp.iscomplexobj(x) else real)
    if shrunk:
        # Small numbers do not matter to a sum that overflows. Without the choice between them XLA
        # might square before it shrinks.
        wide = jnp.where(jnp.abs(wide) > 1, wide * _shrink(real), 0)
    return jnp.real(wide * jnp.conj(wide)) if jnp.iscomplexobj(wide) else jnp.square(wide)


def _common(dtype: Any, other: Any) -> Any:
    """Returns the dtype that holds both, also where the user forbids JAX to choose it."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, other)


def _shrink(dtype: Any) -> jax.Array:
    return jnp.asarray(2.0 ** -(5 * jnp.finfo(dtype).maxexp // 8), dtype)


@jax.jit
def _norm(total: jax.Array, shrunk: jax.Array) -> jax.Array:
    """Returns norms from sums of squares that may overflow, and from those of a smaller copy."""
    # A finite gradient whose norm overflows has the largest norm that the dtype holds.
    norm = jnp.minimum(_root(shrunk) / _shrink(total.dtype), jnp.finfo(total.dtype).max)
    norm = jnp.where(jnp.isfinite(shrunk), norm, jnp.inf)
    return jnp.where(total == jnp.inf, norm, _root(total))


@jax.custom_jvp
def _root(squares: jax.Array) -> jax.Array:
    """Returns the square root, whose derivative at 0 is 0, so that a step differentiates."""
    return jnp.sqrt(squares)


@_root.defjvp
def _root_derivative(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    root = _root(*primals)
    return root, tangents[0] * jnp.where(root == 0, 0, 0.5 / jnp.where(root == 0, 1, root))


def limit_of(leaf: Leaf, clipping: Clipping, step: jax.Array | None) -> Any:
    """Returns the largest ratio of a parameter's units; None if it is not clipped.

    Raises:
      ValueError: a mapping has no expression for its name.
    """
    value: Any = clipping
    if leaf.masked:
        return None
    if isinstance(clipping, Mapping):
        found = [value for pattern, value in clipping.items() if re.search(pattern, leaf.name)]
        if not found:
            raise ValueError(
                f"clipping says nothing of {leaf.name}: add '' for all that is not named"
            )
        value = found[0]
    return value(step) if callable(value) else value


def _clip(
    leaves: Sequence[Leaf], clipping: Clipping, eps: float, step: jax.Array | None
) -> list[jax.Array]:
    """Returns the leaves' gradients, clipped."""
    limits = {leaf.name: limit_of(leaf, clipping, step) for leaf in leaves}
    clipped = [leaf for leaf in leaves if limits[leaf.name] is not None]
    norms = iter(unit_norms(clipped))
    scales = {leaf.name: _scale(*next(norms), limits[leaf.name], eps) for leaf in clipped}
    return [
        _scaled(leaf.gradient, scales[leaf.name]) if leaf.name in scales else leaf.gradient
        for leaf in leaves
    ]


@jax.jit
def _scale(gradient_norm: jax.Array, weight_norm: jax.Array, limit: Any, eps: Any) -> jax.Array:
    """Returns the factors that clip gradients of these norms."""
    dtype = _common(gradient_norm.dtype, weight_norm.dtype)
    gradient_norm, weight_norm = gradient_norm.astype(dtype), weight_norm.astype(dtype)
    limit, eps = jnp.asarray(limit, dtype), jnp.asarray(eps, dtype)
    largest = limit * jnp.maximum(weight_norm, eps)
    clips = (gradient_norm > largest) & jnp.isfinite(gradient_norm)
    # A factor of 1 passes a gradient unchanged, finite or not. The division is kept off 0 / 0 in
    # the branch that is not taken, whose derivative would be NaN.
    return jnp.where(clips, largest / jnp.where(clips, gradient_norm, 1), 1)


def _scaled(gradient: jax.Array, scale: jax.Array) -> jax.Array:
    dtype = _common(gradient.dtype, scale.dtype)
    return (gradient.astype(dtype) * scale.astype(dtype)).astype(gradient.dtype)
