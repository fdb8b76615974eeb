"""Barriers against fusion: arrays that XLA writes to memory instead of computing them twice."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def materialize(arrays: Any) -> Any:
    """Returns a tree of arrays, large arrays of floats written to memory.

    XLA may otherwise compute an array again inside each of its consumers, and can then not update
    its inputs in place. XLA's CPU backend (jax 0.10.2) drops ``lax.optimization_barrier`` before it
    fuses: there the arrays pass through a loop that never runs, which XLA cannot know.
    """
    return lax.platform_dependent(arrays, cpu=_pass_a_loop, default=lax.optimization_barrier)


def materialize_on_cpu(arrays: Any) -> Any:
    """Returns the tree, large arrays of floats written to memory on a CPU.

    On a GPU one kernel writes momentum, parameters and average together.
    """
    return lax.platform_dependent(arrays, cpu=materialize, default=lambda arrays: arrays)


def _pass_a_loop(arrays: Any) -> Any:
    leaves, structure = jax.tree.flatten(arrays)
    large = [leaf for leaf in leaves if _is_large(leaf)]
    if not large:
        return arrays
    # XLA cannot know that a number times 0 is never negative.
    enters = jnp.real(large[0][(0,) * large[0].ndim]) * 0 < 0
    _, large = lax.while_loop(
        lambda loop: loop[0],
        lambda loop: (~loop[0], jax.tree.map(jnp.negative, loop[1])),
        (enters, large),
    )
    written = iter(large)
    results = [next(written) if _is_large(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, results)


@materialize.defjvp
def _materialize_derivative(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return materialize(*primals), tangents[0]


def _is_large(array: jax.Array) -> bool:
    # To compute a smaller one again is as cheap as to write it, and compiles faster.
    return array.size >= 2**14 and jnp.issubdtype(array.dtype, jnp.inexact)
