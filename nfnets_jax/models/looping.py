"""What keeps a loop over equal blocks cheap to compile."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


@jax.custom_vjp
def stack(trees: Sequence[Tree]) -> Tree:
    """One tree of arrays ``[len(trees), ...]`` from trees of the same form and shapes."""

    def joined(*arrays: jax.Array) -> jax.Array:
        # ``jnp.stack`` would first give each of some thousand arrays an axis of its own.
        shape = arrays[0].shape
        return jnp.stack(arrays) if shape == () else lax.concatenate(arrays, 0).reshape(-1, *shape)

    return jax.tree.map(joined, *trees)


def _stack_forward(trees: Sequence[Tree]) -> tuple[Tree, int]:
    return stack(trees), len(trees)


def _stack_backward(length: int, gradient: Tree) -> tuple[list[Tree]]:
    return ([_entry(gradient, place) for place in opaque_range(length)],)


@jax.jit  # So that it is traced once.
def _entry(tree: Tree, place: jax.Array) -> Tree:
    return jax.tree.map(
        lambda array: lax.dynamic_index_in_dim(
            array, place, keepdims=False, allow_negative_indices=False
        ),
        tree,
    )


stack.defvjp(_stack_forward, _stack_backward)


def opaque_range(length: int) -> tuple[jax.Array, ...]:
    """0, 1, ... ``length - 1``, counted in a loop so that XLA does not know the values.

    To take an array from a place that XLA knows is code of its own, 10 ms of compilation on a CPU
    for each of some thousand arrays. With the place as data, arrays of a shape share the code.
    """

    def count(step: jax.Array, places: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(place + (step < end).astype(jnp.int32) for end, place in enumerate(places))

    return lax.fori_loop(0, length, count, (jnp.int32(0),) * length)
