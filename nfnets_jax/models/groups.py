"""Parameters of equal shapes in common arrays: how a GPU trains them.

On a GPU whatever is done to an array costs a kernel, and kernels of less than 10 us took 6 ms of
NFNet-F0's step on an H200. Grouped, its 233 arrays are 69, and the step has a fifth of the kernels
for them. A group's kernels and matrices have their outputs first: cuDNN reads them so, and the
norms of units are sums over rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.models.module_trees import in_modules

# It starts like Haiku's own stacks, by which ``optax_agc.haiku`` knows a leading axis of layers.
_PREFIX = "__layer_stack_of_equal_modules"
Path = tuple[Any, ...]


class Group(NamedTuple):
    """Modules whose parameters have equal names and shapes.

    Attributes:
      name: of the module that holds their parameters together.
      modules: their names, in order.
    """

    name: str
    modules: tuple[str, ...]


def equal_modules(
    params: Mapping[str, Mapping[str, Any]], alone: Sequence[str] = ()
) -> tuple[Group, ...]:
    """Finds the modules to group.

    Args:
      params: in the published form; only the shapes matter.
      alone: modules that stay by themselves.

    Returns:
      Groups of scalars, vectors, matrices and kernels of convolutions. A single layer is a group
      too, for the layout of its kernel.
    """
    found: dict[Any, list[str]] = {}
    for module, values in params.items():
        if module not in alone and _is_known(module, values):
            shapes = tuple(sorted((name, array.shape) for name, array in values.items()))
            found.setdefault(shapes, []).append(module)
    return tuple(
        Group(f"{modules[0].split('/')[0]}/~/{_PREFIX}_{number}", tuple(modules))
        for number, (shapes, modules) in enumerate(found.items())
        if len(modules) > 1 or any(len(shape) > 1 for _, shape in shapes)
    )


def _is_known(module: str, values: Mapping[str, Any]) -> bool:
    """Returns whether each array is a scalar, a vector, or the ``w`` of a layer or convolution."""
    return "transpose" not in module and all(
        array.ndim < 2 or (name == "w" and array.ndim in (2, 4)) for name, array in values.items()
    )


def is_group(module: str) -> bool:
    """Returns whether a module holds the parameters of a group."""
    return f"/{_PREFIX}_" in module


def unit_axes(path: Path, param: jax.Array) -> tuple[int, ...] | None:
    """Returns the axes inside a unit of a group's kernels; None for any other parameter.

    A function as ``optax_agc.Convention.override`` takes it.
    """
    is_in_group = len(path) > 1 and is_group(str(path[-2].key))
    return tuple(range(2, param.ndim)) if is_in_group and param.ndim > 2 else None


def grouped(tree: Any, groups: Sequence[Group]) -> Any:
    """Groups modules.

    Args:
      tree: parameters, or any tree that has ``{module: ...}`` in it, as ``prepare.stacked`` takes
        it. What is grouped already stays.
      groups: from ``equal_modules``.

    Returns:
      The tree, with one module in place of each group's. Its arrays have a leading axis that counts
      the modules; kernels are ``[modules, O, h, w, I]``, matrices ``[modules, O, I]``.
    """

    def join(modules: dict[str, Any]) -> dict[str, Any]:
        for name, members in groups:
            if members[0] in modules:
                values = [modules.pop(member) for member in members]
                modules[name] = jax.tree.map(lambda *arrays: _join(arrays), *values)
        return modules

    return in_modules(join, tree)


def ungrouped(tree: Any, groups: Sequence[Group]) -> Any:
    """Undoes ``grouped``, in a differentiable way; arrays in the host's memory become views."""

    def part(modules: dict[str, Any]) -> dict[str, Any]:
        for name, members in groups:
            if name in modules:
                arrays, structure = jax.tree.flatten(modules.pop(name))
                for member, *values in zip(members, *map(_cut, arrays), strict=True):
                    modules[member] = jax.tree.unflatten(structure, values)
        return modules

    return in_modules(part, tree)


def _join(arrays: Sequence[Any]) -> Any:
    xp: Any = jnp if any(isinstance(array, jax.Array) for array in arrays) else np
    if _has_outputs(np.ndim(arrays[0])):
        arrays = [xp.moveaxis(array, -1, 0) for array in arrays]
    return xp.stack(arrays)


def _cut(array: Any) -> list[Any]:
    return _cut_traced(array) if isinstance(array, jax.Array) else _entries(array, np)


def _entries(array: Any, xp: Any) -> list[Any]:
    entries = [array[place] for place in range(len(array))]
    is_moved = _has_outputs(array.ndim - 1)
    return [xp.moveaxis(entry, 0, -1) for entry in entries] if is_moved else entries


def _has_outputs(rank: int) -> bool:
    """Returns whether arrays of a rank are kernels and matrices, whose last axis is the outputs."""
    return rank > 1


# The gradient of slices would be a sum of arrays that are nearly all zeros.
@jax.custom_vjp
def _cut_traced(array: jax.Array) -> list[jax.Array]:
    return _entries(array, jnp)


_cut_traced.defvjp(
    lambda array: (_cut_traced(array), None), lambda _, cotangents: (_join(cotangents),)
)
