"""Blocks in a loop, next to autodiff's gradient of the same blocks one after the other."""

import operator
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets_jax.kernels import loop as loop_module
from nfnets_jax.kernels.convolution import conv2d
from nfnets_jax.kernels.loop import loop, residuals_are_replaceable
from nfnets_jax.kernels.remat import convolution_output, keep_convolutions

BLOCKS, EXAMPLES, WIDTH = 3, 4, 5


def block(weights: Any, x: jax.Array, scale: jax.Array, keep: jax.Array | None) -> jax.Array:
    branch = jnp.tanh(x * scale) @ weights["w"] + weights["unit"][0]
    return x + (branch if keep is None else jnp.where(keep[:, None], branch, 0))


def one_by_one(weights: Any, x: jax.Array, others: Any) -> jax.Array:
    for place in range(BLOCKS):
        one, (scale, keep) = jax.tree.map(operator.itemgetter(place), (weights, others))
        x = block(one, x, scale, keep)
    return x


@pytest.mark.parametrize("kept", [None, [[True] * 4, [False, True] * 2, [False] * 4]])
def test_value_and_gradient_are_those_of_the_blocks(kept: list[list[bool]] | None) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(BLOCKS, WIDTH, WIDTH)),
        "unit": (rng.normal(size=(BLOCKS, WIDTH)),),
    }
    x = rng.normal(size=(EXAMPLES, WIDTH))
    weights, x = jax.tree.map(jnp.float32, (weights, x))
    others = jnp.array([1.0, 0.5, 2.0]), None if kept is None else jnp.array(kept)

    def looped(weights: Any, x: jax.Array, others: Any) -> jax.Array:
        return loop(block, weights, x, others)

    def loss(run: Any) -> Any:
        return jax.jit(
            jax.value_and_grad(lambda *arguments: jnp.sum(run(*arguments, others) ** 2), (0, 1))
        )(weights, x)

    chex.assert_trees_all_close(loss(looped), loss(one_by_one), rtol=1e-5, atol=1e-6)
    expected = one_by_one(weights, x, others)
    chex.assert_trees_all_close(looped(weights, x, others), expected, rtol=1e-5)


def test_this_jax_lists_arguments_among_the_residuals() -> None:
    """If it fails, a new JAX has changed ``args_res``: ``loop`` compiles slowly, as a scan."""
    assert residuals_are_replaceable()


def test_with_another_jax_the_loop_is_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"w": jnp.ones((BLOCKS, WIDTH, WIDTH)) / 9, "unit": (jnp.ones((BLOCKS, WIDTH)),)}
    x, others = jnp.ones((EXAMPLES, WIDTH)), (jnp.array([1.0, 0.5, 2.0]), None)

    def loss(weights: Any) -> jax.Array:
        return jnp.sum(loop(block, weights, x, others) ** 2)

    expected = jax.grad(loss)(weights)
    monkeypatch.setattr(loop_module, "residuals_are_replaceable", lambda: False)
    assert "while" not in str(jax.make_jaxpr(jax.grad(loss))(weights))
    chex.assert_trees_all_close(jax.grad(loss)(weights), expected, rtol=1e-5)


def test_no_iteration_of_the_backward_loop_copies_all_weights() -> None:
    weights, x = jnp.ones((64, 32, 32)), jnp.ones((1, 32))

    def step(weights: Any, x: jax.Array) -> jax.Array:
        return x @ weights

    # Of temporary arrays, as standardized kernels are.
    gradient = jax.grad(lambda weights: jnp.sum(loop(step, jnp.sin(weights), x, ())))
    compiled = jax.jit(gradient).lower(weights).compile()

    loops, main = str(compiled.as_text()).split("ENTRY")
    all_copied = re.compile(r"f32\[64,32,32\]\S* copy\(")
    assert "f32[64,32,32]" in loops
    assert not all_copied.search(loops)
    assert all_copied.search(main)


def test_the_loop_keeps_one_copy_of_the_weights() -> None:
    weights, x = jnp.ones((BLOCKS, 1, 1, WIDTH, WIDTH)), jnp.ones((2, 3, 3, WIDTH))

    def block(weights: Any, x: jax.Array, scale: jax.Array) -> jax.Array:
        return x + convolution_output(conv2d(jnp.tanh(x) * scale, weights))

    def run(weights: jax.Array, x: jax.Array) -> jax.Array:
        return loop(block, weights, x, (jnp.ones(BLOCKS),), keep_convolutions)

    residuals = jax.tree.leaves(jax.vjp(run, weights, x)[1])
    assert [array.size for array in residuals].count(weights.size) == 1
