"""New parameters for a network, all of its random numbers in one draw.

Each draw in a program costs XLA a quarter of a second of compilation on a CPU: minutes for the
hundreds of kernels of a deep network. One draw that is cut into pieces costs it once.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Normal:
    """A Haiku initializer: independent Gaussians of mean 0 and standard deviation ``std``."""

    std: float

    def __call__(self, shape: Sequence[int], dtype: Any) -> jax.Array:
        """Draws with Haiku's next key, as any initializer does."""
        return self.of(jax.random.normal(hk.next_rng_key(), tuple(shape), dtype))

    def of(self, numbers: jax.Array) -> jax.Array:
        """The parameter from Gaussian numbers of variance 1, in its shape."""
        return self.std * numbers


class Identities(Normal):
    """``Normal`` for a kernel ``[h, w, I, O]``, but the first outputs start as one input each."""

    def of(self, numbers: jax.Array) -> jax.Array:
        """The parameter from Gaussian numbers of variance 1, in its shape."""
        height, width, inputs, outputs = numbers.shape
        own = jnp.arange(min(inputs, outputs))
        kernel = super().of(numbers).at[..., own].set(0)
        return kernel.at[height // 2, width // 2, own, own].set(1)


def initialize(
    network: Callable[..., Any], rng: jax.Array, *args: Any
) -> tuple[hk.MutableParams, hk.MutableState]:
    """Parameters and state of the network, without running it.

    Args:
      network: a function that ``hk.transform_with_state`` takes; the initializers of its parameters
        are ``Normal`` or need no random numbers, as those of its state.
      rng: one random key.
      *args: of the network; only the shapes and dtypes of arrays matter.

    Returns:
      ``{module: {parameter: float32 array}}`` and the same of the state.
    """
    declared: list[tuple[str, str, tuple[int, ...], Callable[..., Any]]] = []
    state: hk.MutableState = {}

    def declare(
        _: Any, shape: Sequence[int], dtype: Any, init: Callable[..., Any], context: Any
    ) -> jax.Array:
        module, name = context.full_name.rsplit("/", 1)
        declared.append((module, name, tuple(shape), init))
        return jnp.zeros(shape, dtype)

    def declare_state(
        _: Any, shape: Sequence[int], dtype: Any, init: Callable[..., Any], context: Any
    ) -> jax.Array:
        module, name = context.full_name.rsplit("/", 1)
        with jax.ensure_compile_time_eval():
            state.setdefault(module, {})[name] = init(shape, jnp.float32)
        return jnp.zeros(shape, dtype)

    def declaring() -> Any:
        with hk.custom_creator(declare), hk.custom_creator(declare_state, params=False, state=True):
            return network(*args)

    jax.eval_shape(hk.transform_with_state(declaring).init, rng)

    random = tuple((shape, init) for *_, shape, init in declared if isinstance(init, Normal))
    numbers = _gaussians(rng, sum(math.prod(shape) for shape, _ in random))
    # Where nothing is traced the host cuts them: on the device each piece is code of its own.
    traced = isinstance(numbers, jax.core.Tracer)
    drawn = iter(_cut(numbers if traced else np.asarray(numbers), random))
    params: hk.MutableParams = {}
    for module, name, shape, init in declared:
        value = next(drawn) if isinstance(init, Normal) else init(shape, jnp.float32)
        params.setdefault(module, {})[name] = value
    return params, state


@functools.partial(jax.jit, static_argnums=1)
def _gaussians(rng: jax.Array, size: int) -> jax.Array:
    return jax.random.normal(rng, (size,))


def _cut(numbers: Any, wanted: tuple[tuple[tuple[int, ...], Normal], ...]) -> list[jax.Array]:
    """One array a (shape, initializer), on the device wherever the numbers are."""
    ends = itertools.accumulate(math.prod(shape) for shape, _ in wanted)
    return [
        init.of(jnp.asarray(numbers[end - math.prod(shape) : end].reshape(shape)))
        for end, (shape, init) in zip(ends, wanted, strict=True)
    ]
