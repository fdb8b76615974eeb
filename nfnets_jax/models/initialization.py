"""Draws the parameters of a network, all random numbers at once.

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
        return self.scale(jax.random.normal(hk.next_rng_key(), tuple(shape), dtype))

    def scale(self, numbers: jax.Array) -> jax.Array:
        """Makes the parameter of Gaussian numbers of variance 1, in its shape."""
        return self.std * numbers


@dataclasses.dataclass(frozen=True)
class TruncatedNormal(Normal):
    """Draws Gaussians of standard deviation ``std`` that end at two of these.

    It is ``hk.initializers.TruncatedNormal``, the default of Haiku's layers; the standard deviation
    of what remains is 0.88 ``std``.
    """

    def scale(self, numbers: jax.Array) -> jax.Array:
        """Makes the parameter of Gaussian numbers of variance 1, in its shape."""
        return self.std * _truncate(numbers)


@jax.jit
def _truncate(numbers: jax.Array) -> jax.Array:
    """Turns Gaussian numbers into those of a Gaussian that ends at -2 and 2."""
    # The error function makes them uniform in (-1, 1).
    inside = jax.lax.erf(np.float32(math.sqrt(2))) * jax.lax.erf(numbers * math.sqrt(0.5))
    return math.sqrt(2) * jax.lax.erf_inv(inside)


def initialize(
    network: Callable[..., Any], rng: jax.Array, *args: Any, only: str | None = None
) -> tuple[hk.MutableParams, hk.MutableState]:
    """Returns new parameters and state of a network, without running it.

    The network is traced for the shapes. Parameters with a ``Normal`` initializer are pieces of one
    draw; any other Haiku initializer runs by itself.

    Args:
      network: a function that ``hk.transform_with_state`` takes.
      rng: one random key.
      *args: arguments of the network; only the shapes and dtypes of arrays matter.
      only: the module whose parameters are drawn; None draws those of all.

    Returns:
      ``{module: {parameter: float32 array}}``, and the state in the same form.
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
    declared = [one for one in declared if only in (None, one[0])]

    normal = tuple((shape, init) for *_, shape, init in declared if isinstance(init, Normal))
    numbers = _gaussians(rng, sum(math.prod(shape) for shape, _ in normal))
    # The host cuts them if it can: on the device each piece would be a kernel of its own.
    traced = isinstance(numbers, jax.core.Tracer)
    drawn = iter(_cut(numbers if traced else np.asarray(numbers), normal))

    def run_initializers() -> hk.MutableParams:
        params: hk.MutableParams = {}
        for module, name, shape, init in declared:
            value = next(drawn) if isinstance(init, Normal) else init(shape, jnp.float32)
            params.setdefault(module, {})[name] = value
        return params

    return hk.transform(run_initializers).apply({}, rng), state


@functools.partial(jax.jit, static_argnums=1)
def _gaussians(rng: jax.Array, size: int) -> jax.Array:
    return jax.random.normal(rng, (size,))


def _cut(numbers: Any, wanted: tuple[tuple[tuple[int, ...], Normal], ...]) -> list[jax.Array]:
    """Returns one array for each shape and initializer, on the default device."""
    ends = itertools.accumulate(math.prod(shape) for shape, _ in wanted)
    return [
        init.scale(jnp.asarray(numbers[end - math.prod(shape) : end].reshape(shape)))
        for end, (shape, init) in zip(ends, wanted, strict=True)
    ]
