"""Describes the machine, and times functions and their compilation on it."""

import datetime
import functools
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nfnets_jax.devices import processor


def describe() -> dict[str, Any]:
    """Returns date, device, processor and versions, to be recorded beside every figure."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "processor": f"{processor()}, {os.cpu_count()} threads",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "haiku": version("dm-haiku"),
    }


def seconds(run: Callable[[], Any], times: int) -> list[float]:
    """Returns the seconds that each of ``times`` runs took until its result was ready."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return taken


class Compilation(NamedTuple):
    """A function compiled for given arguments, and how long that took."""

    run: Any
    trace_seconds: float
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """Time of tracing and compiling together."""
        return self.trace_seconds + self.compile_seconds


def compilation(jitted: Any, *args: Any) -> Compilation:
    """Compiles a function from ``jax.jit`` or ``jax.pmap`` for arrays or for their shapes."""
    start = time.perf_counter()
    lowered = jitted.lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return Compilation(compiled, traced - start, time.perf_counter() - traced)


def memory_rate() -> float:
    """Returns the bytes/s of reading and writing a large array, the best of ten."""
    size = 2**24 if jax.default_backend() == "cpu" else 2**28
    array = jnp.ones(size, jnp.float32)
    negate = jax.jit(jnp.negative)
    seconds(lambda: negate(array), 2)
    return 2 * array.nbytes / min(seconds(lambda: negate(array), 10))


def matmul_rate(dtype: jnp.dtype, precision: jax.lax.Precision | None = None) -> float:
    """Returns the FLOP/s of a large square matrix product, the best of ten."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    # Of random numbers: a GPU draws less power, and runs faster, for equal ones.
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    seconds(lambda: product(matrix, matrix), 2)
    return 2 * size**3 / min(seconds(lambda: product(matrix, matrix), 10))
