"""Any file of parameters that this library reads, told by its content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.weights.atomically import written
from nfnets_jax.weights.published import Tree, read_published

Arrays = dict[str, np.ndarray]


def read_tree(path: Path) -> Tree:
    """The parameters in a published file or a ``.safetensors`` of ours, as they are in it.

    Raises:
      InputError: there is no such file, or it is neither, or not whole.
    """
    start = _start(path)
    if start[:1] == b"\x80":
        return read_published(path)
    if start[8:9] == b"{":
        return unflatten(path, read_safetensors(path))
    raise InputError(f"{path} is neither a published file nor .safetensors")


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_safetensors(path: Path) -> Arrays:
    """The arrays of a ``.safetensors`` file by their names.

    Raises:
      InputError: it is damaged, or the package that reads it is not there.
    """
    safetensors = _safetensors()
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path} is damaged or no .safetensors: {reason}") from error


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by their names, all or nothing."""
    safetensors = _safetensors()
    # The format has no order of dimensions but C's.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with written(path) as partial:
        safetensors.numpy.save_file(contiguous, partial)


def flatten(tree: Mapping[str, Mapping[str, Any]]) -> Arrays:
    """``{"module/parameter": array}``, sorted."""
    return {
        f"{module}/{name}": np.asarray(tree[module][name])
        for module in sorted(tree)
        for name in sorted(tree[module])
    }


def unflatten(path: Path, arrays: Mapping[str, np.ndarray]) -> Tree:
    """The opposite of ``flatten``; the file's path is for messages."""
    tree: Tree = {}
    for full_name, array in arrays.items():
        module, _, name = full_name.rpartition("/")
        if not module:
            raise InputError(f"{path}: {full_name[:100]!r} is not named MODULE/PARAMETER")
        tree.setdefault(module, {})[name] = array
    return tree


def _safetensors() -> Any:
    """Imported where it is used: who reads published files alone does not need it."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise InputError(".safetensors need a package: pip install safetensors") from error
    return safetensors
