"""Whether parameters are those of a model."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import create_model
from nfnets_jax.weights.published import Tree

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]

# Of each kind of mismatch, how many are named.
_NAMED = 4


@functools.lru_cache(maxsize=64)
def parameter_shapes(name: str, num_classes: int, channels: int = 3, **overrides: Any) -> Shapes:
    """``{module: {parameter: shape}}`` of ``create_model(name, num_classes, **overrides)``."""
    model = create_model(name, num_classes, **overrides)
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    return {
        module: {name: tuple(leaf.shape) for name, leaf in leaves.items()}
        for module, leaves in params.items()
    }


def classifier(shapes: Callable[..., Shapes]) -> list[tuple[str, str]]:
    """The parameters, by module and name, whose shapes depend on the number of classes.

    ``shapes`` is ``parameter_shapes`` of a model, still without ``num_classes``.
    """
    one, two = shapes(num_classes=1), shapes(num_classes=2)
    return [
        (module, name)
        for module, parameters in one.items()
        for name, shape in parameters.items()
        if two[module][name] != shape
    ]


def count_classes(tree: Tree, shapes: Callable[..., Shapes]) -> int:
    """How many classes the parameters tell apart; 1000 if they have no classifier of this kind."""
    for module, name in classifier(shapes):
        array = tree.get(module, {}).get(name)
        if array is not None and array.ndim:
            return array.shape[-1]
    return 1000


def check(source: str, tree: Tree, shapes: Shapes) -> Tree:
    """The parameters in float32.

    Args:
      source: where they are from, for messages.
      tree: what has been read.
      shapes: what it should be.

    Raises:
      InputError: some are missing, unexpected, or of another shape, or hold values that are not
        finite; the message names them.
    """
    wanted = {(module, name): s for module, ps in shapes.items() for name, s in ps.items()}
    found = {(module, name): a.shape for module, ps in tree.items() for name, a in ps.items()}
    other_shape = [
        f"{_full(key)} {found[key]} and not {wanted[key]}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    faults = [
        _list("missing", [_full(key) for key in wanted if key not in found]),
        _list("unexpected", [_full(key) for key in found if key not in wanted]),
        _list("of another shape", other_shape),
    ]
    if any(faults):
        raise InputError(f"{source} is of another model: {'; '.join(filter(None, faults))}")
    return {
        module: {name: _float32(source, module, name, array) for name, array in parameters.items()}
        for module, parameters in tree.items()
    }


def _float32(source: str, module: str, name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # It is told below.
        values = np.asarray(array, np.float32)
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise InputError(
            f"{source}: {bad} of the {values.size} values of {module}/{name} are not finite"
        )
    return values


def _full(key: tuple[str, str]) -> str:
    return ascii("/".join(key)).strip("'")[:100]


def _list(what: str, names: list[str]) -> str:
    """``"3 missing: a, b, ..."``, or nothing."""
    if not names:
        return ""
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} {what}: {', '.join(names[:_NAMED])}{more}"
