"""Counts a network's parameters, multiply-adds and activations without running it.

A multiplication and an addition in a convolution or matrix product count as one multiply-add, which
papers call "FLOPs" (He et al. 2016, arXiv:1512.03385, table 1). Activations are the outputs of
these operations (Radosavovic et al. 2020, arXiv:2003.13678, section 3). Normalization,
nonlinearities, pooling and the standardization of kernels count nothing.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.registry import Model

# The named scopes of a network, in the order in which they compute.
_PART = re.compile(r"\b(stem|stage_\d+|head)\b")
_NATIVE = Policy(native=True)


class Work(NamedTuple):
    """Multiply-adds, and the number of their outputs."""

    multiply_adds: int
    activations: int


@dataclasses.dataclass(frozen=True)
class Part:
    """The stem, a stage or the head of a network.

    Attributes:
      name: ``"stem"``, ``"stage_1"`` ... or ``"head"``.
      output_shape: ``[H, W, C]`` for one image; for the head ``[C]``, the logits,
        or without a classifier the pooled features.
      parameters: number of learned numbers.
      work: of inference on one image.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    work: Work


@dataclasses.dataclass(frozen=True)
class Summary:
    """The parts of a network in the order in which they compute."""

    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """Number of learned numbers."""
        return sum(part.parameters for part in self.parts)

    @property
    def work(self) -> Work:
        """Work of inference on one image."""
        return _total(part.work for part in self.parts)


def summarize(model: Model, image_size: int, channels: int = 3) -> Summary:
    """Counts a model, part by part, for inference on one image ``[image_size, image_size, C]``.

    The model is traced; it does not run, and no parameters are made.
    """
    model = model.with_policy(_NATIVE)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), image)

    def outputs(params: Any, state: Any, image: jax.Array) -> dict[str, jax.Array]:
        return model.apply(params, state, None, image, False)[0]

    jaxpr = jax.make_jaxpr(outputs)(params, state, image).jaxpr
    uncounted = set(jaxpr.invars[: len(jax.tree.leaves(params))])
    # The parameters that arrays computed outside of all parts depend on, as standardized kernels.
    origins = {param: {param} for param in uncounted}
    parts: dict[str, Part] = {}
    for equation in jaxpr.eqns:
        inputs = [var for var in equation.invars if not hasattr(var, "val")]  # No literals.
        used = set[Any]().union(*(origins.get(var, ()) for var in inputs))
        scope = _PART.search(str(equation.source_info.name_stack))
        if scope is None:
            origins.update((var, used) for var in equation.outvars)
            continue
        before = parts.get(scope[0], Part(scope[0], (), 0, Work(0, 0)))
        parts[scope[0]] = Part(
            name=scope[0],
            output_shape=equation.outvars[0].aval.shape[1:],
            parameters=before.parameters + sum(var.aval.size for var in used & uncounted),
            work=_total([before.work, _work_of(equation)]),
        )
        uncounted -= used
    return Summary(tuple(parts.values()))


def work(function: Callable[..., Any], *args: Any) -> Work:
    """Counts a function of arrays; ``args`` may be shapes.

    A convolution counts right if its policy is native; the forms for CPUs have other products.
    """
    return _total(map(_work_of, jax.make_jaxpr(function)(*args).eqns))


def _work_of(equation: Any) -> Work:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape, outputs = equation.invars[0].aval.shape, equation.outvars[0].aval.size
        return Work(outputs * math.prod(shape[axis] for axis in contracted), outputs)
    if name == "conv_general_dilated":
        kernel, outputs = equation.invars[1].aval, equation.outvars[0].aval.size
        channels = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return Work(outputs * kernel.size // channels, outputs)
    values = filter(_is_jaxpr, jax.tree.leaves(list(params.values())))
    inner = (equation for value in values for equation in getattr(value, "jaxpr", value).eqns)
    total = _total(map(_work_of, inner))
    times = params["length"] if name == "scan" else 1
    return Work(times * total.multiply_adds, times * total.activations)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _total(works: Iterable[Work]) -> Work:
    counted = list(works)
    return Work(sum(one.multiply_adds for one in counted), sum(one.activations for one in counted))
