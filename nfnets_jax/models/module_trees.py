"""Visits the dictionaries ``{module: ...}`` in a tree of parameters, moments or figures."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def in_modules(change: Callable[[dict[str, Any]], dict[str, Any]], tree: Any) -> Any:
    """Changes every dictionary of a tree, the outermost first.

    Args:
      change: gets a copy of a dictionary, which it may change, and returns what takes its place.
      tree: dictionaries in each other, or in lists and tuples.
    """

    def visit(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        return {name: in_modules(change, inner) for name, inner in change(dict(node)).items()}

    return jax.tree.map(visit, tree, is_leaf=lambda node: isinstance(node, Mapping))
