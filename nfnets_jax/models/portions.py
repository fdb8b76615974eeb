"""A few images at a time: as many as a CPU's cache holds of what is made of them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

_Each = TypeVar("_Each")
_Sum = TypeVar("_Sum")


def in_portions(
    function: Callable[..., tuple[_Each, _Sum]], bound: int, bytes_an_image: int, *arrays: Any
) -> tuple[_Each, _Sum]:
    """``function(*arrays)``, called in a loop with a few images at a time.

    Args:
      function: of arrays ``[n, ...]``; returns a tree of arrays ``[n, ...]``, which are joined, and
        another of arrays that are summed over the calls.
      bound: bytes that a call may use; it gets one image at least.
      bytes_an_image: that it uses.
      arrays: ``[N, ...]``, or trees of them; the number at a time divides ``N``.
    """
    images = len(jax.tree.leaves(arrays)[0])
    most = max(1, min(images, bound // bytes_an_image))
    size = max(size for size in range(1, most + 1) if images % size == 0)
    if size == images:
        return function(*arrays)
    portions = jax.tree.map(lambda array: array.reshape(-1, size, *array.shape[1:]), arrays)

    def add(total: _Sum, portion: tuple[Any, ...]) -> tuple[_Sum, _Each]:
        each, some = function(*portion)
        return jax.tree.map(jnp.add, total, some), each

    _, shapes = jax.eval_shape(function, *jax.tree.map(lambda array: array[0], portions))
    zero = jax.tree.map(lambda some: jnp.zeros(some.shape, some.dtype), shapes)
    total, each = lax.scan(add, zero, portions)
    return jax.tree.map(lambda array: array.reshape(images, *array.shape[2:]), each), total
