"""Golden figures: how their inputs were made, and where their outputs lie."""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tree = dict[str, dict[str, np.ndarray]]


def generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def images(examples: int, size: int) -> np.ndarray:
    return generator("images").standard_normal((examples, size, size, 3), dtype=np.float32)


def parameters(shapes: Mapping[str, Mapping[str, list[int]]]) -> Tree:
    """The golden values of a parameter tree given as ``{module: {parameter: shape}}``."""
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


def load(shared: Path, name: str) -> Any:
    return json.loads((shared / "golden" / name).read_text())
