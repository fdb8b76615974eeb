"""Files that are there whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from nfnets_jax.errors import InputError


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to be written; it takes its place when the block ends well.

    At any moment there is the old file or the new one, whole.

    Raises:
      OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # It may well not be there.
            partial.unlink()


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """``replaced`` for a file that a person has named; its folder is made.

    Raises:
      InputError: it cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as partial:
            yield partial
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
