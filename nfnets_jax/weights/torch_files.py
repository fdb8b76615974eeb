"""Reads state dicts from PyTorch's files, without PyTorch and without running their code.

A file is a zip archive: a pickle, ``data.pkl``, and one member for each storage of numbers, which
the pickle's persistent ids name.
"""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.weights.unpickling import Buildable, Constructor, unpickle

_DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "torch.DoubleStorage": np.dtype("<f8"),
        "torch.FloatStorage": np.dtype("<f4"),
        "torch.HalfStorage": np.dtype("<f2"),
        "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
        "torch.LongStorage": np.dtype("<i8"),
    }
)
# Tensors may share storages, as tied layers do; converted, each takes memory of its own.
_MOST_SHARING = 4
# Files from before PyTorch 1.6, which are not zip archives, start with this.
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a state dict by their names, as ``torch.save`` wrote it.

    Args:
      path: the state dict itself, or a checkpoint that holds it as ``"state_dict"``.

    Raises:
      InputError: the file is damaged, holds something else, or would run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _unpickle(path, archive)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or not a file of PyTorch: {error}") from error
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} does not hold a state dict")
    for name, array in content.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path}: {name[:100]!r} is not a tensor")
    size, most = sum(array.nbytes for array in content.values()), _MOST_SHARING
    if size > most * path.stat().st_size:
        raise InputError(
            f"{path}: its tensors share their numbers, and would take {size / 1e6:,.0f} MB, more "
            f"than {most} times the file"
        )
    return dict(content)


def _unpickle(path: Path, archive: zipfile.ZipFile) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    # Unpacked, it cannot become larger than the file.
    if (
        any(member.compress_type != zipfile.ZIP_STORED for member in members.values())
        or sum(member.file_size for member in members.values()) > path.stat().st_size
    ):
        raise InputError(f"{path} is compressed, which files of PyTorch are not")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(f"{path} is a zip archive without data.pkl, so not a file of PyTorch")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
        raise InputError(f"{path} was written on a big-endian machine")
    storages: dict[str, np.ndarray] = {}

    def storage(description: Any) -> np.ndarray:
        """Returns the storage of a persistent id ``("storage", type, key, device, length)``."""
        kind, dtype, key, _, length = description
        if kind != "storage" or not isinstance(dtype, Constructor) or not isinstance(key, str):
            raise ValueError("a persistent id names a storage")
        if key not in storages:
            dtype = dtype.call.dtype  # type: ignore[attr-defined]
            storages[key] = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
        if length != len(storages[key]):
            raise ValueError(f"storage {key[:20]!r} has another length")
        return storages[key]

    return unpickle(io.BytesIO(archive.read(pickles[0])), str(path), _CONSTRUCTORS, storage)


class _StateDict(dict[str, Any], Buildable):
    """An ordered dict. PyTorch attaches version numbers to it, which are ignored."""

    def build(self, state: Any) -> None:
        pass


class _Storage:
    """The type of a storage, which a file names but must not call."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def __call__(self, *_: Any) -> Any:
        raise ValueError("a storage must not be called")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """Returns a view of a storage, with no more values than the storage."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise ValueError("a tensor lies in a storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) <= 8):
        raise ValueError("a tensor has a shape and strides")
    if not all(type(n) is int and 0 <= n < 2**31 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor has sizes and strides from 0 on")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if min(shape, default=1) == 0 or last >= len(storage) or math.prod(shape) > len(storage):
        raise ValueError("a tensor lies within its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict() -> _StateDict:
    return _StateDict()


_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **{name: _Storage(dtype) for name, dtype in _DTYPES.items()},
}
