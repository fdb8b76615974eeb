"""Equal trees as one whose arrays have a leading axis, cheap to compile the gradient of."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


def stack(trees: Sequence[Tree]) -> Tree:
    """One tree of arrays ``[len(trees), ...]`` from trees of the same form and shapes."""
    return jax.tree.map(lambda *arrays: _stack(arrays), *trees)


@jax.custom_vjp
def _stack(arrays: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack(arrays)


def _stack_forward(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
    return jnp.stack(arrays), None


def _stack_backward(_: None, gradient: jax.Array) -> tuple[tuple[jax.Array, ...]]:
    places = _opaque_range(len(gradient))
    return (tuple(lax.dynamic_index_in_dim(gradient, at, keepdims=False) for at in places),)


_stack.defvjp(_stack_forward, _stack_backward)


def _opaque_range(length: int) -> tuple[jax.Array, ...]:
    """0, 1, ... ``length - 1``, counted in a loop so that XLA does not know the values.

    To take an array from a place that XLA knows is code of its own, 10 ms of compilation on a CPU
    for each of some thousand arrays. With the place as data, arrays of a shape share the code.
    """

    def count(step: jax.Array, places: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(place + (step < end).astype(jnp.int32) for end, place in enumerate(places))

    return lax.fori_loop(0, length, count, (jnp.int32(0),) * length)
