"""Rematerialization: what the backward pass recomputes instead of keeping it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nfnets_jax.kernels.convolution import Policy

_CONVOLUTION = "convolution"

Function = Callable[..., jax.Array]


def rematerialization(remat: str, policy: Policy) -> Callable[[Function], Function]:
    """Returns what decides the residuals of a block.

    Args:
      remat: ``"none"``, or anything else to recompute the whole block from its arguments.
      policy: how the network is computed. With ``"none"``, CPUs keep the outputs of convolutions
        alone; GPUs and TPUs keep whatever the gradient reads, as to recompute it took 12% of
        NFNet-F0's step on an H200.
    """
    if remat != "none":
        return keep_arguments
    return keep_convolutions if policy.for_cpu else lambda block: block


def convolution_output(x: jax.Array) -> jax.Array:
    """Marks the output of a convolution: ``keep_convolutions`` keeps it."""
    return checkpoint_name(x, _CONVOLUTION)


def keep_convolutions(function: Function) -> Function:
    """Returns the function with its arguments and the outputs of its convolutions as residuals.

    Activations, pooling and scaling are recomputed: they are cheap, and each array that is kept
    costs memory and, in the body of a loop, kernels to compile.
    """
    policy = jax.checkpoint_policies.save_only_these_names(_CONVOLUTION)

    def run(weights: Any, x: jax.Array, *inputs: Any) -> jax.Array:
        # As arguments, constants among the inputs would be unknown numbers in the backward pass.
        # XLA would simplify it unlike the forward pass, and compute some activations twice.
        def of_inputs(weights: Any, x: jax.Array) -> jax.Array:
            return function(weights, x, *inputs)

        return jax.checkpoint(of_inputs, policy=policy)(weights, x)

    return run


def keep_arguments(function: Function) -> Function:
    """Returns the function with its arguments alone as residuals.

    XLA's CPU backend (jax 0.10.2) drops the barriers of ``jax.checkpoint`` before it schedules: it
    recomputes early, and saves no memory. Here the recomputation depends on the cotangent, so that
    no backend can start it earlier.

    Args:
      function: ``(weights, x, *inputs) -> array``, nearly all of whose work depends on the array
        ``x``. Arguments are trees of arrays.

    Returns:
      The same function, for reverse-mode differentiation only.
    """

    @jax.custom_vjp
    def run(*arguments: Any) -> jax.Array:
        return function(*arguments)

    def backward(arguments: tuple[Any, ...], cotangent: jax.Array) -> tuple[Any, ...]:
        weights, x, *inputs = arguments
        first = cotangent[(0,) * cotangent.ndim].astype(x.dtype)
        # x, unless the cotangent is NaN, and the gradient with it. XLA cannot know which it is.
        late = jnp.where(jnp.isnan(first), first, x)
        return jax.vjp(function, weights, late, *inputs)[1](cotangent)

    run.defvjp(lambda *arguments: (function(*arguments), arguments), backward)
    return run
