"""The same networks as timm has them: other names, other layouts, and another way to divide.

timm's convolutions divide by ``sqrt(var + 1e-5)`` where the published ones divide by
``sqrt(max(var, 1e-4 / fan_in))``. With the gains as they are, a kernel of 1152 inputs a unit would
come out half a percent smaller, so they are changed to make up for it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.models.nf_network import NFNetworkConfig
from nfnets_jax.weights.published import Tree

Arrays = Mapping[str, np.ndarray]

_TIMM_EPS = 1e-5
_EPS = 1e-4

# Within a block.
_BLOCK = {
    "conv0": "conv1",
    "conv1": "conv2",
    "conv1b": "conv2b",
    "conv2": "conv3",
    "conv_shortcut": "downsample.conv",
    "squeeze_excite/~/linear": "attn_last.fc1",
    "squeeze_excite/~/linear_1": "attn_last.fc2",
}
_PARAMETERS = {
    "w": "weight",
    "b": "bias",
    "bias": "bias",
    "gain": "gain",
    "skip_gain": "skipinit_gain",
}


class _Layout(NamedTuple):
    """Of one parameter: the axes as timm orders them, and axes of size 1 that are added last."""

    axes: tuple[int, ...]
    added: int = 0

    def to_timm(self, array: np.ndarray) -> np.ndarray:
        moved = array.transpose(self.axes)
        return moved.reshape(moved.shape + (1,) * self.added)

    def from_timm(self, array: np.ndarray) -> np.ndarray:
        kept = array.reshape(array.shape[: array.ndim - self.added])
        return kept.transpose(np.argsort(self.axes).astype(int))


def _nfnet_modules(config: NFNetworkConfig) -> Iterator[tuple[str, str]]:
    """Every module's name, and timm's for it."""
    for index in range(len(config.stem)):
        yield f"NFNet/~/stem_conv{index}", f"stem.conv{index + 1}"
    places = [(stage, block) for stage, depth in enumerate(config.depth) for block in range(depth)]
    for index, (stage, block) in enumerate(places):
        ours, theirs = f"NFNet/~/nf_block{f'_{index}' if index else ''}", f"stages.{stage}.{block}"
        yield ours, theirs
        for inner, timm_inner in _BLOCK.items():
            yield f"{ours}/~/{inner}", f"{theirs}.{timm_inner}"
    yield "NFNet/~/final_conv", "final_conv"
    yield "NFNet/~/linear", "head.fc"


# By the family of a model; another one is one more line.
_FAMILIES: Mapping[str, Callable[[NFNetworkConfig], Iterator[tuple[str, str]]]] = {
    "NFNet": _nfnet_modules,
}


def to_timm(tree: Tree, config: NFNetworkConfig) -> dict[str, np.ndarray]:
    """Timm's state dict, float32, of parameters ``{module: {parameter: array}}``.

    Args:
      tree: checked to be the model's.
      config: the model's settings.

    Raises:
      InputError: timm has no such networks.
    """
    modules = _modules(config)
    state = {}
    for module, parameters in tree.items():
        for name, array in parameters.items():
            if name == "gain":
                array = array * _correction(parameters["w"])
            layout = _layout(modules[module], name, array.ndim)
            full_name = f"{modules[module]}.{_PARAMETERS[name]}"
            state[full_name] = layout.to_timm(np.asarray(array, np.float32))
    return state


def from_timm(
    state: Arrays, config: NFNetworkConfig, wanted: Mapping[str, Mapping[str, int]]
) -> Tree:
    """Parameters ``{module: {parameter: array}}``, float32, of timm's state dict.

    What has no counterpart keeps its name, and what is missing is left out, for a check to tell.

    Args:
      state: by timm's names.
      config: the model's settings.
      wanted: ``{module: {parameter: dimensions}}`` of the model.

    Raises:
      InputError: timm has no such networks.
    """
    modules = _modules(config)
    rest, tree = dict(state), Tree()
    for module, parameters in wanted.items():
        for name, dimensions in parameters.items():
            full_name = f"{modules[module]}.{_PARAMETERS[name]}"
            layout = _layout(modules[module], name, dimensions)
            array = rest.get(full_name)
            if array is None or array.ndim != dimensions + layout.added:
                continue
            if array.shape[array.ndim - layout.added :] != (1,) * layout.added:
                continue
            del rest[full_name]
            tree.setdefault(module, {})[name] = layout.from_timm(np.asarray(array, np.float32))
    for arrays in tree.values():
        if {"gain", "w"} <= arrays.keys() and arrays["gain"].shape == arrays["w"].shape[-1:]:
            gain = arrays["gain"] / _correction(arrays["w"])
            arrays["gain"] = gain.astype(np.float32)
    for full_name, array in rest.items():
        module, _, name = full_name.rpartition(".")
        tree.setdefault(module, {})[name] = array
    return tree


def _modules(config: NFNetworkConfig) -> dict[str, str]:
    if config.family.name not in _FAMILIES:
        raise InputError(f"there are no names in timm yet for a {config.family.name}")
    return dict(_FAMILIES[config.family.name](config))


def _layout(timm_module: str, name: str, dimensions: int) -> _Layout:
    """Of a parameter of so many dimensions here."""
    if name == "gain":
        return _Layout((0,), added=3)
    if name != "w":
        return _Layout(tuple(range(dimensions)))
    if dimensions == 4:
        return _Layout((3, 2, 0, 1))  # HWIO to OIHW.
    # Squeeze-excite's layers are convolutions there.
    return _Layout((1, 0), added=0 if timm_module.startswith("head") else 2)


def _correction(w: np.ndarray) -> np.ndarray:
    """``[O]``, what timm's gains are over ours for the kernel ``w`` ``[..., O]``."""
    units = w.reshape(-1, w.shape[-1]).astype(np.float64)
    variance = units.var(axis=0)
    return np.sqrt((variance + _TIMM_EPS) / np.maximum(variance, _EPS / len(units)))
