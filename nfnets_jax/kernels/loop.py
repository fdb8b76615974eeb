"""Runs equal blocks as one loop, with a gradient that compiles quickly.

XLA compiles every kernel of a program by itself, and a deep network unrolled has thousands. A loop
has the kernels of one block. What is in this file keeps their number low in both directions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")
# ``(weights, x, *inputs) -> x``, of one block.
Block = Callable[..., jax.Array]


def loop(
    block: Block,
    weights: Any,
    x: jax.Array,
    inputs: Any,
    rematerialize: Callable[[Block], Block] = lambda block: block,
) -> jax.Array:
    """Applies a block repeatedly: ``x = block(weights[i], x, *inputs[i])`` for each ``i``.

    The result is that of ``lax.scan``. The gradient, for reverse mode only, compiles faster and
    keeps no copy of the weights.

    Args:
      block: ``(weights, x, *inputs) -> x``; the output has the shape and dtype of the input.
      weights: tree of arrays ``[blocks, ...]``.
      x: the first block's input.
      inputs: tuple of trees of arrays ``[blocks, ...]``, or None; no gradient flows to them.
      rematerialize: changes what the block keeps for its gradient, as the functions of
        ``kernels.remat`` do.

    Returns:
      The last block's output.
    """
    like = jax.eval_shape(functools.partial(jax.tree.map, lambda array: array[0]), weights)

    def reshaped(weights: Any, x: jax.Array, *inputs: Any) -> jax.Array:
        whole = jax.tree.map(lambda array, whole: array.reshape(whole.shape), weights, like)
        return block(whole, x, *inputs)

    run = _loop if residuals_are_replaceable() else _scan
    # Outside of the rematerialized block, reshaped weights would be residuals: copies.
    return run(rematerialize(reshaped), jax.tree.map(_without_unit_axes, weights), x, inputs)


def _without_unit_axes(array: jax.Array) -> jax.Array:
    # Slices of 1x1 kernels and of matrices are then the same kernels of the program.
    return array.reshape(len(array), *(length for length in array.shape[1:] if length != 1))


def _scan(block: Block, weights: Any, x: jax.Array, inputs: Any) -> jax.Array:
    x, _ = lax.scan(lambda x, here: (block(here[0], x, *here[1]), None), x, (weights, inputs))
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(block: Block, weights: Any, x: jax.Array, inputs: Any) -> jax.Array:
    return _scan(block, weights, x, inputs)


def _loop_forward(
    block: Block, weights: Any, x: jax.Array, inputs: Any
) -> tuple[jax.Array, tuple[Any, ...]]:
    def run(x: jax.Array, here: Any) -> tuple[jax.Array, Any]:
        weights, inputs = here
        y, pullback = jax.vjp(block, weights, x, *inputs)
        # Only x is a residual of the loop: weights and inputs are at hand in the backward pass.
        kept = argument_residuals(pullback)[1]
        return y, replace_argument_residuals(pullback, [None, kept, *[None] * len(inputs)])

    y, pullbacks = lax.scan(run, x, (weights, inputs))
    return y, (weights, pullbacks, inputs)


def _loop_backward(
    block: Block, residuals: tuple[Any, ...], cotangent: jax.Array
) -> tuple[Any, jax.Array, None]:
    del block
    weights, pullbacks, inputs = residuals

    # A while loop and not a reversed scan: a scan counts from the end, and its slices of the
    # weights would be kernels of their own instead of those that the forward loop has.
    def run(carry: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
        place, cotangent, gradients = carry
        pullback, weights_here, inputs_here = _entry((pullbacks, weights, inputs), place)
        kept = argument_residuals(pullback)[1]
        pullback = replace_argument_residuals(pullback, [weights_here, kept, *inputs_here])
        gradient, cotangent, *_ = pullback(cotangent)

        def write(array: jax.Array, new: jax.Array) -> jax.Array:
            return lax.dynamic_update_index_in_dim(
                array, new, place, 0, allow_negative_indices=False
            )

        return place - 1, cotangent, jax.tree.map(write, gradients, gradient)

    last = jnp.int32(len(jax.tree.leaves(weights)[0]) - 1)
    # Every entry is overwritten. A copy of the weights to write in needs no kernel, zeros do.
    _, cotangent, gradients = lax.while_loop(
        lambda carry: carry[0] >= 0, run, (last, cotangent, weights)
    )
    return gradients, cotangent, None


_loop.defvjp(_loop_forward, _loop_backward)


@functools.cache
def residuals_are_replaceable() -> bool:
    """Returns whether this JAX lists the arguments among a pullback's residuals.

    It is an undocumented attribute of what ``jax.vjp`` returns, ``args_res``, of jax 0.8 to 0.12.
    Where it is missing, ``loop`` is a ``lax.scan`` with JAX's own gradient.
    """
    _, pullback = jax.vjp(lambda x, y: x * y, 1.0, 2.0)
    return len(getattr(pullback, "args_res", ())) == 2


def argument_residuals(pullback: Any) -> Sequence[Any]:
    """Returns the residuals of a pullback that are arguments, one an argument."""
    return pullback.args_res


def replace_argument_residuals(pullback: Any, arguments: Sequence[Any]) -> Any:
    """Returns the pullback with other residuals in place of those that are arguments."""
    pullback.args_res = list(arguments)
    return pullback


@jax.custom_vjp
def stack(trees: Sequence[Tree]) -> Tree:
    """Returns one tree of arrays ``[len(trees), ...]`` from trees of equal structure and shapes."""

    def join(*arrays: jax.Array) -> jax.Array:
        # ``jnp.stack`` would first add an axis to each of some thousand arrays.
        shape = arrays[0].shape
        return jnp.stack(arrays) if shape == () else lax.concatenate(arrays, 0).reshape(-1, *shape)

    return jax.tree.map(join, *trees)


def _stack_forward(trees: Sequence[Tree]) -> tuple[Tree, int]:
    return stack(trees), len(trees)


def _stack_backward(length: int, cotangent: Tree) -> tuple[list[Tree]]:
    return ([_entry(cotangent, place) for place in opaque_range(length)],)


@jax.jit  # It is traced once for each structure.
def _entry(tree: Tree, place: jax.Array) -> Tree:
    return jax.tree.map(
        lambda array: lax.dynamic_index_in_dim(
            array, place, keepdims=False, allow_negative_indices=False
        ),
        tree,
    )


stack.defvjp(_stack_forward, _stack_backward)


def opaque_range(length: int) -> tuple[jax.Array, ...]:
    """Returns 0, 1, ... ``length - 1`` as scalars whose values XLA does not know.

    A slice at a known place is a kernel of its own, 10 ms of compilation on a CPU for each of some
    thousand arrays. Slices of one shape at unknown places share a kernel.
    """

    def count(step: jax.Array, places: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(place + (step < end).astype(jnp.int32) for end, place in enumerate(places))

    return lax.fori_loop(0, length, count, (jnp.int32(0),) * length)
