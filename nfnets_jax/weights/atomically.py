"""Files that are there whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from nfnets_jax.errors import InputError


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to be written; it takes its name when the block ends well.

    Raises:
      InputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # It may well not be there.
            partial.unlink()
