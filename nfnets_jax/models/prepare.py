"""Parameters of equal layers as one array: the form that loops read and training keeps.

A deep network has a thousand arrays, and whatever is done with each is code to compile and to call.
Stacked, equal layers are a few arrays with a leading axis that counts the layers. The published
form, an array a layer, is what the outside sees.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nfnets_jax.kernels.loop import stack


class LayerStack(NamedTuple):
    """Equal layers that one module stands for.

    Attributes:
      name: of that module.
      layers: names of theirs, in order; each has the same modules below it.
    """

    name: str
    layers: tuple[str, ...]


# Haiku's own stacks have such names, too.
_PREFIX = "__layer_stack"


def stack_name(number: int) -> str:
    """For a module that holds a stack."""
    return f"{_PREFIX}_{number}"


def is_stacked(module: str) -> bool:
    """Whether the first axis of a module's parameters counts layers, by its full name."""
    return any(part.startswith(_PREFIX) for part in module.split("/"))


def stacked(tree: Any, stacks: Sequence[LayerStack]) -> Any:
    """A tree with the modules of equal layers as one.

    Args:
      tree: wherever it has a ``{module: ...}``, one is put in its place. What a module has is any
        tree of arrays or numbers. What is stacked already stays as it is.
      stacks: which layers are equal.
    """

    def join(modules: dict[str, Any]) -> dict[str, Any]:
        for name, layers in stacks:
            parts = [_taken(modules, layer) for layer in layers]
            if parts[0]:
                modules |= {name + below: values for below, values in _joined(parts).items()}
        return modules

    return _in_modules(join, tree)


def unstacked(tree: Any, stacks: Sequence[LayerStack]) -> Any:
    """The tree that ``stacked`` was given; on the host, views of the same memory."""

    def part(modules: dict[str, Any]) -> dict[str, Any]:
        for name, layers in stacks:
            for below, values in _taken(modules, name).items():
                for place, layer in enumerate(layers):
                    modules[layer + below] = jax.tree.map(lambda x, at=place: x[at], values)
        return modules

    return _in_modules(part, tree)


def _in_modules(change: Callable[[dict[str, Any]], dict[str, Any]], tree: Any) -> Any:
    """The tree with every dictionary changed, from the outermost on."""

    def visit(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        return {name: _in_modules(change, inner) for name, inner in change(dict(node)).items()}

    return jax.tree.map(visit, tree, is_leaf=lambda node: isinstance(node, Mapping))


def _taken(modules: dict[str, Any], layer: str) -> dict[str, Any]:
    """Removes the layer's modules and gives them by what their names have below the layer's."""
    names = [name for name in modules if name == layer or name.startswith(f"{layer}/")]
    return {name.removeprefix(layer): modules.pop(name) for name in names}


def _joined(trees: Sequence[Any]) -> Any:
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees)):
        return stack(trees)
    return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)
