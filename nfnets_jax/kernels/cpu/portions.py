"""Runs a function on a few images at a time, so that its arrays stay in a CPU's cache."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

_Each = TypeVar("_Each")
_Sum = TypeVar("_Sum")
_Tree = TypeVar("_Tree")


def in_portions(
    function: Callable[..., tuple[_Each, _Sum]], bound: int, bytes_an_image: int, *arrays: Any
) -> tuple[_Each, _Sum]:
    """Computes ``function(*arrays)`` in a loop over portions of the images.

    Args:
      function: maps arrays ``[n, ...]`` to a tree of arrays ``[n, ...]``, which are joined, and a
        tree of arrays that are summed over the portions.
      bound: bytes that a portion may use; it has at least one image.
      bytes_an_image: bytes that one image uses.
      *arrays: ``[N, ...]``, or trees of them; the size of a portion divides ``N``.
    """
    images = len(jax.tree.leaves(arrays)[0])
    most = max(1, min(images, bound // bytes_an_image))
    size = max(size for size in range(1, most + 1) if images % size == 0)
    if size == images:
        return function(*arrays)
    # One image gets its axis inside the loop: XLA's CPU backend copies arrays that have it outside.
    axes = () if size == 1 else (size,)

    def portion(*arrays: Any) -> tuple[_Each, _Sum]:
        each, some = function(*_leading(arrays, len(axes), size))
        return _leading(each, 1, *axes), some

    def add(total: _Sum, arrays: Any) -> tuple[_Sum, _Each]:
        each, some = portion(*arrays)
        return jax.tree.map(jnp.add, total, some), each

    portions = _leading(arrays, 1, -1, *axes)
    _, shapes = jax.eval_shape(portion, *jax.tree.map(lambda array: array[0], portions))
    zero = jax.tree.map(lambda some: jnp.zeros(some.shape, some.dtype), shapes)
    total, each = lax.scan(add, zero, portions)
    return _leading(each, 1 + len(axes), images), total


def _leading(arrays: _Tree, before: int, *axes: int) -> _Tree:
    """Reshapes arrays: these axes take the place of the first ``before`` ones."""
    return jax.tree.map(lambda array: array.reshape(*axes, *array.shape[before:]), arrays)
