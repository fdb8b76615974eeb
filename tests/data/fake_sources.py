"""Sources whose records can be told apart by their pixels."""

import io

import numpy as np
from PIL import Image

from nfnets_jax.data.sources import ArraySource, Record


def numbered(length: int, size: int = 8) -> ArraySource:
    """Random images without black pixels, labelled with their position."""
    images = np.random.default_rng(0).integers(1, 256, (length, size, size, 3), np.uint8)
    return ArraySource(images, np.arange(length))


class Files:
    """PNG files, some of them damaged; an image's gray level and its label are its position."""

    def __init__(self, length: int, damaged: set[int]):
        self._length, self._damaged = length, damaged

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        buffer = io.BytesIO()
        Image.new("RGB", (10, 9), (index, index, index)).save(buffer, "PNG")
        content = buffer.getvalue()
        if index in self._damaged:
            content = content[:40]
        return Record(image=content, label=index, name=f"file {index}")
