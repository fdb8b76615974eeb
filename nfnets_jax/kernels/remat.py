"""Less memory for more arithmetic: what a function computed is computed anew for its gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def recomputed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of which the gradient keeps the arguments alone.

    ``jax.checkpoint`` would do, did XLA's CPU backend (jax 0.10.2) not drop its barriers before it
    orders the work: it then computes anew as soon as it can, which is as good as keeping. Here what
    is computed anew depends on the gradient, so that on no backend can it be computed before.

    Args:
      function: ``(weights, x, *others) -> array``, nearly all of whose work depends on the array
        ``x``. Arguments are trees of arrays.

    Returns:
      The same function, for reverse-mode differentiation only.
    """

    @jax.custom_vjp
    def run(*arguments: Any) -> jax.Array:
        return function(*arguments)

    def backward(arguments: tuple[Any, ...], gradient: jax.Array) -> tuple[Any, ...]:
        weights, x, *others = arguments
        first = gradient[(0,) * gradient.ndim].astype(x.dtype)
        # A gradient that is NaN stays NaN; to XLA, x is other data than the x it has already used.
        late = jnp.where(jnp.isnan(first), first, x)
        return jax.vjp(function, weights, late, *others)[1](gradient)

    run.defvjp(lambda *arguments: (function(*arguments), arguments), backward)
    return run
