"""Reads any known file of parameters, recognized by its content; writes ``.safetensors``."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfnets_jax.atomic import atomic_write_for_user
from nfnets_jax.errors import InputError
from nfnets_jax.weights.published import Tree, read_published
from nfnets_jax.weights.torch_files import LEGACY, read_torch

Arrays = dict[str, np.ndarray]


def read_arrays(path: Path) -> Arrays:
    """Reads the arrays of a file by their names, ``MODULE/PARAMETER`` in a published one.

    Args:
      path: a published file, ``.safetensors``, or a state dict that PyTorch saved.

    Raises:
      InputError: there is no such file, it is of another kind, or it is damaged.
    """
    start = _start(path)
    if _is_safetensors(start):
        return read_safetensors(path)
    if start.startswith(LEGACY):
        raise InputError(f"{path} is from before PyTorch 1.6: save it again with a later version")
    if start.startswith(b"\x80"):
        return flatten(read_published(path))
    if start.startswith(b"PK"):
        return read_torch(path)
    raise InputError(f"{path} is neither a published file, nor .safetensors, nor a file of PyTorch")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(LEGACY))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _is_safetensors(start: bytes) -> bool:
    # Before the header comes its length in eight little-endian bytes, of which four suffice.
    return start[4:9] == b"\0\0\0\0{"


def read_safetensors(path: Path) -> Arrays:
    """Reads the arrays of a ``.safetensors`` file by their names.

    Raises:
      InputError: it is damaged, or the package that reads it is not installed.
    """
    safetensors = _safetensors()
    with _damage_named(path, safetensors):
        return safetensors.numpy.load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a ``.safetensors`` file; files of other kinds have none.

    Raises:
      InputError: as ``read_safetensors``, or there is no such file.
    """
    if not _is_safetensors(_start(path)):
        return {}
    safetensors = _safetensors()
    with _damage_named(path, safetensors), safetensors.safe_open(path, "numpy") as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _damage_named(path: Path, safetensors: Any) -> Iterator[None]:
    """Raises an ``InputError`` for any error by which the package tells that a file is damaged."""
    try:
        yield
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path} is damaged or no .safetensors: {reason}") from error


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays by their names, and metadata, all or nothing."""
    safetensors = _safetensors()
    # The format stores arrays in C order.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with atomic_write_for_user(path) as partial:
        try:
            safetensors.numpy.save_file(contiguous, partial, dict(metadata or {}) or None)
        except safetensors.SafetensorError as error:
            raise OSError(error) from error


def flatten(tree: Mapping[str, Mapping[str, Any]]) -> Arrays:
    """Returns ``{"module/parameter": array}``, sorted."""
    return {
        f"{module}/{name}": np.asarray(tree[module][name])
        for module in sorted(tree)
        for name in sorted(tree[module])
    }


def unflatten(path: Path, arrays: Mapping[str, np.ndarray]) -> Tree:
    """Undoes ``flatten``; the path of the file is for messages."""
    tree: Tree = {}
    for full_name, array in arrays.items():
        module, _, name = full_name.rpartition("/")
        if not module:
            raise InputError(f"{path}: {full_name[:100]!r} is not named MODULE/PARAMETER")
        tree.setdefault(module, {})[name] = array
    return tree


def _safetensors() -> Any:
    """Imports the package, which published files do not need."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise InputError(".safetensors need a package: pip install safetensors") from error
    return safetensors
