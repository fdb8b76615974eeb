"""Reads and writes the published files: pickles of ``{module: {parameter: numpy array}}``.

They are named ``.npz`` and were written with dill, which pickles arrays in its own way. Haiku of
that time kept parameters in an immutable mapping, which may be in them too.
"""

import dataclasses
import math
import mmap
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfnets_jax.atomic import atomic_write_for_user
from nfnets_jax.errors import InputError
from nfnets_jax.weights.unpickling import Buildable, Constructor, unpickle

Tree = dict[str, dict[str, np.ndarray]]

_FLOATS = frozenset({"f2", "f4", "f8", "float16", "float32", "float64"})
_MOST_DIMENSIONS = 8


def read_published(path: Path) -> Tree:
    """Reads the parameters of a file as views of its content, in their own dtypes.

    Args:
      path: a pickle, protocol 2 to 5, by pickle or dill.

    Raises:
      InputError: the file is damaged, holds something else, or would run code.
    """
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise InputError(f"{path} is empty") from error
        constructors = {**_CONSTRUCTORS, "_codecs.encode": _Encoder()}
        with content:
            tree = unpickle(content, str(path), constructors)  # type: ignore[arg-type]
    if not isinstance(tree, dict) or not tree:
        raise InputError(f"{path} does not hold parameters by module and name")
    mappings = [parameters for parameters in tree.values() if isinstance(parameters, dict)]
    if len({id(parameters) for parameters in mappings}) < len(mappings):
        raise InputError(f"{path}: modules share their parameters, which takes memory without end")
    return {module: _parameters(path, module, parameters) for module, parameters in tree.items()}


def write_published(path: Path, tree: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes parameters in the published form, a pickle of protocol 4, all or nothing."""
    plain = {
        module: {name: np.asarray(value) for name, value in parameters.items()}
        for module, parameters in tree.items()
    }
    with atomic_write_for_user(path) as partial, partial.open("wb") as file:
        pickle.dump(plain, file, protocol=4)


def _parameters(path: Path, module: str, parameters: Any) -> dict[str, np.ndarray]:
    if not isinstance(parameters, dict):
        raise InputError(f"{path}: {module[:100]!r} does not hold parameters by name")
    arrays = {}
    for name, value in parameters.items():
        if not isinstance(value, _Array) or value.array is None:
            raise InputError(f"{path}: {f'{module}/{name}'[:100]!r} is not an array")
        arrays[name] = value.array
    return arrays


class _Array(Buildable):
    """A placeholder of an array, complete once it has its state."""

    def __init__(self, array: np.ndarray | None = None):
        self.array = array

    def build(self, state: Any) -> None:
        """Takes NumPy's ``(version, shape, dtype, Fortran order or not, bytes)``."""
        if self.array is not None:
            raise ValueError("an array has two states")
        _, shape, dtype, fortran, content = state
        self.array = _array(content, dtype, shape, "F" if fortran else "C")


@dataclasses.dataclass
class _DType(Buildable):
    """A placeholder of a dtype: its kind and size, and the order of its bytes."""

    name: str
    order: Any = "<"

    def build(self, state: Any) -> None:
        """Takes ``(version, byte order, fields of structured dtypes)``."""
        _, self.order, subarray, names, fields, *_ = state
        if self.order not in ("<", ">", "=", "|") or (subarray, names, fields) != (None,) * 3:
            raise ValueError("dtypes are plain floats")


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Returns a view of the bytes, checked so that nothing is allocated for it."""
    if not isinstance(content, bytes | bytearray):
        raise ValueError(f"an array is made of bytes, not a {type(content).__name__}")
    if not isinstance(dtype, _DType) or order not in ("C", "F"):
        raise ValueError("an array has a dtype and an order")
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"an array has a shape of at most {_MOST_DIMENSIONS} dimensions")
    if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise ValueError("an array has sizes from 0 on")
    values = np.frombuffer(content, np.dtype(dtype.name).newbyteorder(dtype.order))
    if math.prod(shape) != len(values):
        raise ValueError(f"an array of {len(values)} values has the shape {shape}")
    return values.reshape(shape, order=order)


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    """Stands in for NumPy's function, called with ``(ndarray, (0,), b"b")`` before the state."""
    if not isinstance(kind, Constructor) or kind.call is not _no_array or shape != (0,):
        raise ValueError("an array is begun as numpy.ndarray of no values")
    return _Array()


def _create_array(function: Any, arguments: Any, state: Any, attributes: Any = None) -> _Array:
    """Stands in for dill's function, called with the arguments and the state at once."""
    if not isinstance(function, Constructor) or function.call is not _reconstruct or attributes:
        raise ValueError("an array is made by numpy, without attributes")
    array = _reconstruct(*arguments)
    array.build(state)
    return array


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Stands in for NumPy's function in protocol 5."""
    return _Array(_array(content, dtype, shape, order))


def _scalar(dtype: Any, content: Any) -> _Array:
    return _Array(_array(content, dtype, (), "C"))


def _dtype(name: Any, align: Any = False, copy: Any = True) -> _DType:
    if not isinstance(name, str) or name not in _FLOATS:
        what = repr(name[:20]) if isinstance(name, str) else f"from a {type(name).__name__}"
        raise ValueError(f"dtype {what}; parameters are floats")
    return _DType(name)


def _no_array(*_: Any) -> _Array:
    raise ValueError("numpy.ndarray must not be called")


class _Encoder:
    """Encodes the bytes that protocol 2 writes as text, each text once."""

    def __init__(self) -> None:
        self._encoded: dict[int, tuple[str, bytes]] = {}

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("bytes are written as latin1")
        if id(text) not in self._encoded:
            self._encoded[id(text)] = text, text.encode("latin1")
        return self._encoded[id(text)][1]


def _mapping(items: Any = None) -> dict[str, Any]:
    """Returns the given mapping itself, as a file could ask for copies without end."""
    if items is not None and not isinstance(items, dict):
        raise ValueError("a mapping is made of a mapping")
    return {} if items is None else items


_NUMPY = ("numpy.core", "numpy._core")  # Before version 2 of NumPy, and since.
_MAPPINGS = (
    "builtins.dict",
    "collections.OrderedDict",
    "haiku._src.data_structures.FlatMap",
    "haiku._src.data_structures.FlatMapping",
    "haiku._src.data_structures.frozendict",
    "immutabledict.immutabledict",
    "frozendict.frozendict",
    "flax.core.frozen_dict.FrozenDict",
)
_CONSTRUCTORS = {
    "numpy.ndarray": _no_array,
    "numpy.dtype": _dtype,
    **{f"{home}.multiarray._reconstruct": _reconstruct for home in _NUMPY},
    **{f"{home}.multiarray.scalar": _scalar for home in _NUMPY},
    **{f"{home}.numeric._frombuffer": _from_buffer for home in _NUMPY},
    **{f"{home}._create_array": _create_array for home in ("dill._dill", "dill.dill")},
    **dict.fromkeys(_MAPPINGS, _mapping),
}
