"""Photographs to measure with, as they are or shrunk as ``experiments.prepare`` shrinks them."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from experiments.prepare import Shrinking
from nfnets_jax.data.sources.folder import open_folder


@contextlib.contextmanager
def shrunk(directory: str, shorter_side: int | None) -> Iterator[str]:
    """Gives a folder of the photographs shrunk to a side, pixels; for none, the folder itself."""
    if not shorter_side:
        yield directory
        return
    shrink, source = Shrinking(shorter_side), open_folder(directory).train
    with tempfile.TemporaryDirectory() as folder:
        for index in range(len(source)):
            record = source[index]
            assert isinstance(record["image"], Path)
            file = Path(folder, record["image"].parent.name, record["image"].name)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(shrink(record["image"].read_bytes()))
        yield folder
