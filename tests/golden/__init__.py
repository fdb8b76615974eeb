"""Golden figures: their inputs, drawn as README.md says, and the figures that belong to them."""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tree = dict[str, dict[str, np.ndarray]]


def generator(name: str) -> np.random.Generator:
    """Returns the random numbers of the array called ``name``."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def images(examples: int, size: int) -> np.ndarray:
    """Returns images, float32 ``[examples, size, size, 3]``, to be fed without normalization."""
    return generator("images").standard_normal((examples, size, size, 3), dtype=np.float32)


def parameters(shapes: Mapping[str, Mapping[str, list[int]]]) -> Tree:
    """Returns the golden values, float32, of a tree of shapes ``{module: {parameter: shape}}``."""
    fill: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "w": lambda n: n / np.float32(math.sqrt(math.prod(n.shape[:-1]))),
        "gain": lambda n: 1 + np.float32(0.1) * n,
        "skip_gain": lambda n: np.float32(0.5) + np.float32(0.1) * n,
        "bias": lambda n: np.float32(0.05) * n,
        "b": lambda n: np.float32(0.05) * n,
    }

    def value(module: str, name: str, shape: list[int]) -> np.ndarray:
        numbers = generator(f"{module}/{name}").standard_normal(tuple(shape), dtype=np.float32)
        return np.asarray(fill[name](np.asarray(numbers)), np.float32)

    return {
        module: {name: value(module, name, shape) for name, shape in parameters.items()}
        for module, parameters in shapes.items()
    }


def load(name: str) -> Any:
    """Reads one of the JSON files of this folder."""
    return json.loads(Path(__file__).with_name(name).read_text())
