"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nfnets_jax.errors import InputError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside ``path``, which replaces it when the block succeeds.

    At any moment ``path`` is the old file or the new one, whole.

    Raises:
      OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # After success it is gone.
            partial.unlink()


@contextlib.contextmanager
def atomic_write_for_user(path: Path) -> Iterator[Path]:
    """Does as ``atomic_write`` for a path that a user gave, and makes its folder.

    Raises:
      InputError: it cannot be written.
    """
    with _folder_made(path), atomic_write(path) as partial:
        yield partial


def check_writable(path: Path) -> None:
    """Makes the folder of a file that will be written later, so that a fault ends early.

    Raises:
      InputError: the file could not be written.
    """
    with _folder_made(path), tempfile.TemporaryFile(dir=path.parent):
        pass


@contextlib.contextmanager
def _folder_made(path: Path) -> Iterator[None]:
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
