"""Whether parameters are those of a model."""

from collections.abc import Mapping
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


Parameter = tuple[str, str]


class Fit:
    """What parameters a model takes, of any number of classes and any channels.

    Which of them depend on either is found by asking for two numbers.
    """

    def __init__(self, name: str, overrides: Mapping[str, Any]):
        self._name, self._overrides = name, overrides
        self.config = create_model(name, **overrides).config
        self._least = self.shapes(1, 3)
        self._classifier = _differing(self._least, self.shapes(2, 3))
        try:
            self._first = _differing(self._least, self.shapes(1, 4))
        except InputError:  # It takes colours only.
            self._first = []

    def shapes(self, num_classes: int, channels: int) -> Shapes:
        """``{module: {parameter: shape}}`` for so many classes and images of so many channels."""
        model = create_model(self._name, num_classes, **self._overrides)
        images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
        params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
        return {
            module: {name: tuple(leaf.shape) for name, leaf in leaves.items()}
            for module, leaves in params.items()
        }

    @property
    def classifier(self) -> list[Parameter]:
        """The parameters, by module and name, whose shapes depend on the number of classes."""
        return self._classifier

    @property
    def dimensions(self) -> dict[str, dict[str, int]]:
        """How many dimensions each parameter has."""
        return {m: {n: len(shape) for n, shape in ps.items()} for m, ps in self._least.items()}

    def num_classes(self, tree: Tree) -> int:
        """How many classes parameters tell apart; 1000 if they have no such classifier."""
        return _size(tree, self._classifier, axis=-1) or 1000

    def channels(self, tree: Tree) -> int:
        """Of the images that parameters are for; 3 if they have no such first layer."""
        return _size(tree, self._first, axis=-2) or 3


def _differing(one: Shapes, other: Shapes) -> list[Parameter]:
    return [
        (module, name)
        for module, parameters in one.items()
        for name, shape in parameters.items()
        if other[module][name] != shape
    ]


def _size(tree: Tree, parameters: list[Parameter], axis: int) -> int:
    """Along an axis of the first of these that is there; 0 if none is."""
    for module, name in parameters:
        array = tree.get(module, {}).get(name)
        if array is not None and array.ndim >= -axis:
            return array.shape[axis]
    return 0


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
