"""The files that NFNets were published in: pickles of ``{module: {parameter: numpy array}}``.

Named ``.npz``, they were written with dill, which pickles arrays in a way of its own. Haiku of that
time held parameters in an immutable mapping, so that may be in them too.
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
    """The parameters in a file, as views of its content, in the dtypes that are in it.

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
        raise InputError(f"{path} holds no parameters by module and name")
    return {module: _parameters(path, module, parameters) for module, parameters in tree.items()}


def write_published(path: Path, tree: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes parameters as they were published: a pickle of protocol 4, all or nothing."""
    plain = {
        module: {name: np.asarray(value) for name, value in parameters.items()}
        for module, parameters in tree.items()
    }
    with atomic_write_for_user(path) as partial, partial.open("wb") as file:
        pickle.dump(plain, file, protocol=4)


def _parameters(path: Path, module: str, parameters: Any) -> dict[str, np.ndarray]:
    if not isinstance(parameters, dict):
        raise InputError(f"{path}: {module[:100]!r} holds no parameters by name")
    arrays = {}
    for name, value in parameters.items():
        if not isinstance(value, _Array) or value.array is None:
            raise InputError(f"{path}: {f'{module}/{name}'[:100]!r} is no array")
        arrays[name] = value.array
    return arrays


class _Array(Buildable):
    """Stands for an array, whole once its state is there."""

    def __init__(self, array: np.ndarray | None = None):
        self.array = array

    def build(self, state: Any) -> None:
        """``(version, shape, dtype, whether in Fortran's order, bytes)``, as NumPy writes it."""
        if self.array is not None:
            raise ValueError("an array has two states")
        _, shape, dtype, fortran, content = state
        self.array = _array(content, dtype, shape, "F" if fortran else "C")


@dataclasses.dataclass
class _DType(Buildable):
    """Stands for a dtype: its kind and size, and the order of its bytes."""

    name: str
    order: Any = "<"

    def build(self, state: Any) -> None:
        """``(version, byte order, what only structured dtypes have)``."""
        _, self.order, subarray, names, fields, *_ = state
        if self.order not in ("<", ">", "=", "|") or (subarray, names, fields) != (None,) * 3:
            raise ValueError("dtypes are plain floats")


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Checked so that nothing is ever allocated for it: it is a view of the bytes."""
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
    """What NumPy calls with ``(ndarray, (0,), b"b")`` before the state comes."""
    if not isinstance(kind, Constructor) or kind.call is not _no_array or shape != (0,):
        raise ValueError("an array is begun as numpy.ndarray of no values")
    return _Array()


def _create_array(function: Any, arguments: Any, state: Any, attributes: Any = None) -> _Array:
    """What dill calls instead, with all that NumPy would."""
    if not isinstance(function, Constructor) or function.call is not _reconstruct or attributes:
        raise ValueError("an array is made by numpy, without attributes")
    array = _reconstruct(*arguments)
    array.build(state)
    return array


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """What NumPy calls in protocol 5."""
    return _Array(_array(content, dtype, shape, order))


def _scalar(dtype: Any, content: Any) -> _Array:
    return _Array(_array(content, dtype, (), "C"))


def _dtype(name: Any, align: Any = False, copy: Any = True) -> _DType:
    if not isinstance(name, str) or name not in _FLOATS:
        what = repr(name[:20]) if isinstance(name, str) else f"from a {type(name).__name__}"
        raise ValueError(f"dtype {what}; parameters are floats")
    return _DType(name)


def _no_array(*_: Any) -> _Array:
    raise ValueError("numpy.ndarray is not to be called")


class _Encoder:
    """What makes bytes of text in protocol 2, of each text once, however often a file asks."""

    def __init__(self) -> None:
        self._encoded: dict[int, tuple[str, bytes]] = {}

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("bytes are written as latin1")
        if id(text) not in self._encoded:
            self._encoded[id(text)] = text, text.encode("latin1")
        return self._encoded[id(text)][1]


def _mapping(items: Any = None) -> dict[str, Any]:
    """The mapping that is given, itself: copies could be asked for without end."""
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
