"""Functions from a tree of parameters to another: kernels standardized, equal layers stacked.

Parameters are ``{module: {parameter: array}}`` everywhere. In the published form each layer has
arrays of its own. Stacked, equal layers share arrays with a leading axis that counts the layers: a
deep network then has a tenth as many arrays, and whatever is done with each compiles faster.
Prepared, the kernels are standardized.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.kernels.loop import stack
from nfnets_jax.models.groups import is_group
from nfnets_jax.models.layers import standardize
from nfnets_jax.models.module_trees import in_modules

# The prefix of Haiku's own stacks, by which ``optax_agc.haiku`` knows them.
_PREFIX = "__layer_stack"


class LayerStack(NamedTuple):
    """Equal layers, whose parameters one module holds.

    Attributes:
      name: of that module.
      layers: names of the layers' modules, in order; each has the same modules below it.
    """

    name: str
    layers: tuple[str, ...]


def stack_name(number: int) -> str:
    """Returns the name of a module that holds a stack."""
    return f"{_PREFIX}_{number}"


def is_stacked(module: str) -> bool:
    """Returns whether the first axis of a module's parameters counts layers."""
    return any(part.startswith(_PREFIX) for part in module.split("/"))


def prepare(params: Mapping[str, Mapping[str, jax.Array]], dtype: jnp.dtype) -> hk.MutableParams:
    """Standardizes every kernel that has a gain, once for any number of batches.

    Args:
      params: float32; stacked, grouped (``models.groups``) or neither.
      dtype: of what is computed with the kernels.

    Returns:
      The parameters, in which each module with ``w`` and ``gain`` has its ``w`` standardized, the
      gain in it, and no ``gain``; all its parameters are in ``dtype``. Other modules stay.
    """

    def prepared(module: str, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        if not {"w", "gain"} <= values.keys():
            return dict(values)
        run: Callable[..., jax.Array] = standardize
        if is_group(module):
            run = _standardize_group
        elif is_stacked(module):
            run = jax.vmap(standardize)
        rest = {name: values[name] for name in values if name != "gain"}
        rest["w"] = run(values["w"], values["gain"])
        return {name: value.astype(dtype) for name, value in rest.items()}

    return {module: prepared(module, values) for module, values in params.items()}


def _standardize_group(kernels: jax.Array, gains: jax.Array) -> jax.Array:
    """Standardizes kernels ``[modules, O, h, w, I]`` as one, with the units of all modules."""
    units = kernels.reshape(gains.size, -1).T
    return standardize(units, gains.reshape(-1)).T.reshape(kernels.shape)


def stacked(tree: Any, stacks: Sequence[LayerStack]) -> Any:
    """Stacks equal layers.

    Args:
      tree: parameters, or any tree that has ``{module: ...}`` in it: gradients, an optimizer's
        state. A module's value is a tree of arrays or numbers. Stacked layers stay as they are.
      stacks: which layers are equal.

    Returns:
      The tree, with one module in place of those of equal layers.
    """

    def join(modules: dict[str, Any]) -> dict[str, Any]:
        for name, layers in stacks:
            parts = [_taken(modules, layer) for layer in layers]
            if parts[0]:
                modules |= {name + below: values for below, values in _joined(parts).items()}
        return modules

    return in_modules(join, tree)


def unstacked(tree: Any, stacks: Sequence[LayerStack]) -> Any:
    """Undoes ``stacked``; arrays in the host's memory become views, not copies."""

    def part(modules: dict[str, Any]) -> dict[str, Any]:
        for name, layers in stacks:
            for below, values in _taken(modules, name).items():
                for place, layer in enumerate(layers):
                    modules[layer + below] = jax.tree.map(lambda x, at=place: x[at], values)
        return modules

    return in_modules(part, tree)


def _taken(modules: dict[str, Any], layer: str) -> dict[str, Any]:
    """Removes a layer's modules, and returns them by the part of their names below the layer's."""
    names = [name for name in modules if name == layer or name.startswith(f"{layer}/")]
    return {name.removeprefix(layer): modules.pop(name) for name in names}


def _joined(trees: Sequence[Any]) -> Any:
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees)):
        return stack(trees)
    return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)
