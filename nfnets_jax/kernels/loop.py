"""What keeps a loop over equal blocks cheap to compile."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def loop(block: Callable[..., jax.Array], weights: Any, x: jax.Array, others: Any) -> jax.Array:
    """``x = block(weights[i], x, *others[i])`` for each ``i``: blocks one after the other.

    As a ``lax.scan`` would, but its gradient is compiled in less time. It is for reverse-mode
    differentiation only.

    Args:
      block: ``(weights, x, *others) -> x``; what it gives has the shape of what it is given.
      weights: tree of arrays with a leading axis that counts blocks.
      x: the first block's input.
      others: tuple of such trees, or of None, that nothing is learned of: no gradient is theirs.

    Returns:
      What the last block gives.
    """
    x, _ = lax.scan(lambda x, one: (block(one[0], x, *one[1]), None), x, (weights, others))
    return x


def _loop_forward(
    block: Callable[..., jax.Array], weights: Any, x: jax.Array, others: Any
) -> tuple[jax.Array, tuple[Any, ...]]:
    def run(x: jax.Array, one: Any) -> tuple[jax.Array, Any]:
        weights, others = one
        pull: Any
        y, pull = jax.vjp(block, weights, x, *others)
        # Of the arguments that it holds, only x is not at hand anyway when it is called.
        pull.args_res = [None, pull.args_res[1], *[None] * len(others)]
        return y, pull

    y, pulls = lax.scan(run, x, (weights, others))
    return y, (weights, pulls, others)


def _loop_backward(
    block: Callable[..., jax.Array], saved: tuple[Any, ...], gradient: jax.Array
) -> tuple[Any, jax.Array, None]:
    del block
    weights, pulls, others = saved

    # Not a scan in reverse: its places, counted from the end, would be code of their own, where the
    # forward loop's is shared.
    def run(carry: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
        place, gradient, of_all = carry
        pull, weights_here, others_here = _entry((pulls, weights, others), place)
        pull.args_res = [weights_here, pull.args_res[1], *others_here]
        of_weights, gradient, *_ = pull(gradient)

        def write(array: jax.Array, new: jax.Array) -> jax.Array:
            return lax.dynamic_update_index_in_dim(
                array, new, place, 0, allow_negative_indices=False
            )

        return place - 1, gradient, jax.tree.map(write, of_all, of_weights)

    last = jnp.int32(len(jax.tree.leaves(weights)[0]) - 1)
    # All of it is written over. The weights are there to be copied; zeros are code for each shape.
    _, gradient, of_all = lax.while_loop(
        lambda carry: carry[0] >= 0, run, (last, gradient, weights)
    )
    return of_all, gradient, None


loop.defvjp(_loop_forward, _loop_backward)


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
