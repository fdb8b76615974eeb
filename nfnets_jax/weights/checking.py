"""Checks that parameters and class names are those of a model."""

import unicodedata
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model
from nfnets_jax.weights.published import Tree

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]

# How many parameters a message names, for each kind of mismatch.
_MOST_NAMED = 4
# Control characters, and halves of surrogate pairs, which no output can encode.
_UNPRINTABLE = ("Cc", "Cs")


def shapes_of(model: Model, channels: int) -> Shapes:
    """Returns the shapes of a model's parameters for images with this number of channels."""
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    return {
        module: {name: tuple(leaf.shape) for name, leaf in leaves.items()}
        for module, leaves in params.items()
    }


def count_classes(model: Model, tree: Tree) -> int:
    """Returns the number of classes that parameters distinguish: 0 without a classifier.

    A classifier without a matrix counts for 1000.
    """
    if model.classifier not in tree:
        return 0
    matrix = tree[model.classifier].get("w")
    return matrix.shape[-1] if matrix is not None and matrix.ndim else 1000


def count_channels(model: Model, tree: Tree) -> int:
    """Returns the channels of the images that parameters are for; 3 without a first layer."""
    kernel = tree.get(model.first_conv, {}).get("w")
    return kernel.shape[-2] if kernel is not None and kernel.ndim > 1 else 3


def check_class_names(source: str, names: Any, num_classes: int | None = None) -> tuple[str, ...]:
    """Returns class names, in the order of the labels.

    Args:
      source: where they come from, for messages.
      names: what was found there.
      num_classes: how many there should be; None takes any number.

    Raises:
      InputError: they are not a list of strings, one is empty or would not print on one line, or
        they are not as many as the classes.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"the class names of {source} are no list of strings")
    for name in names:
        if not name or any(unicodedata.category(character) in _UNPRINTABLE for character in name):
            raise InputError(
                f"{source} has a class name that is empty or has control characters: "
                f"{ascii(name)[:100]}"
            )
    if num_classes not in (None, len(names)):
        raise InputError(f"{source} has {len(names)} class names for {num_classes} classes")
    return tuple(names)


def check(source: str, tree: Tree, shapes: Shapes) -> Tree:
    """Returns the parameters in float32.

    Args:
      source: where they come from, for messages.
      tree: the parameters.
      shapes: the shapes that they should have.

    Raises:
      InputError: some are missing, unexpected, or of another shape, or hold values that are not
        finite; the message names them.
    """
    wanted = {(module, name): s for module, ps in shapes.items() for name, s in ps.items()}
    found = {(module, name): a.shape for module, ps in tree.items() for name, a in ps.items()}
    other_shape = [
        f"{_full_name(key)} {found[key]} and not {wanted[key]}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    faults = [
        _list("missing", [_full_name(key) for key in wanted if key not in found]),
        _list("unexpected", [_full_name(key) for key in found if key not in wanted]),
        _list("of another shape", other_shape),
    ]
    if any(faults):
        raise InputError(f"{source} is of another model: {'; '.join(filter(None, faults))}")
    return {
        module: {name: _float32(source, module, name, array) for name, array in parameters.items()}
        for module, parameters in tree.items()
    }


def _float32(source: str, module: str, name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # Values that overflow are counted below.
        values = np.asarray(array, np.float32)
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise InputError(
            f"{source}: {bad} of the {values.size} values of {module}/{name} are not finite"
        )
    return values


def _full_name(key: tuple[str, str]) -> str:
    return ascii("/".join(key)).strip("'")[:100]


def _list(fault: str, names: list[str]) -> str:
    """Returns ``"3 missing: a, b, ..."``, or nothing."""
    if not names:
        return ""
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return f"{len(names)} {fault}: {', '.join(names[:_MOST_NAMED])}{more}"
