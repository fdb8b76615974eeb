"""The same networks as timm has them: other names, other layouts, and another way to divide.

timm's convolutions divide by ``sqrt(var + 1e-5)`` where the published ones divide by
``sqrt(max(var, 1e-4 / fan_in))``. With the gains as they are, a kernel of 1152 inputs a unit would
come out half a percent smaller, so they are changed to make up for it.

Its NF-ResNets and NF-RegNets have no skip gains, and multiply every kernel by the activations'
constant instead of the activations. So there the skip gains are in the gains and biases of the
blocks' last convolutions, kernels whose input is not activated have gains that undo the constant,
and the classifier's matrix has it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.models.layers import ACTIVATION_GAINS
from nfnets_jax.models.nfnet import NFNetConfig
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
    "squeeze_excite/~/linear": "{attention}.fc1",
    "squeeze_excite/~/linear_1": "{attention}.fc2",
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


def _names(config: NFNetConfig) -> Iterator[tuple[str, str]]:
    """Every module's name, and timm's for it."""
    for index in range(len(config.stem)):
        name = f"{config.name}/~/{config.stem_name.format(index)}"
        yield name, f"stem.conv{index + 1}" if _is_nfnet(config) else "stem.conv"
    attention = "attn" if config.excites_bottleneck else "attn_last"
    places = [(stage, block) for stage, depth in enumerate(config.depth) for block in range(depth)]
    for index, (stage, block) in enumerate(places):
        ours = f"{config.name}/~/{config.block_name}{f'_{index}' if index else ''}"
        theirs = f"stages.{stage}.{block}"
        yield ours, theirs
        for inner, timm_inner in _BLOCK.items():
            yield f"{ours}/~/{inner}", f"{theirs}.{timm_inner.format(attention=attention)}"
    yield f"{config.name}/~/final_conv", "final_conv"
    yield f"{config.name}/~/linear", "head.fc"


def _is_nfnet(config: NFNetConfig) -> bool:
    """Whether timm computes as here, constants and all."""
    return config.name == "NFNet"


def _moved(tree: Tree, config: NFNetConfig, back: bool = False) -> Tree:
    """With the constants where timm's other networks have them; ``back`` for where they are here.

    Going there the skip gains go into the blocks' last convolutions; coming back they are 1.
    """
    constant = ACTIVATION_GAINS[config.activation] ** (-1 if back else 1)
    root = f"{config.name}/~/"
    moved = {module: dict(parameters) for module, parameters in tree.items()}
    for module, parameters in moved.items():
        if "skip_gain" in parameters and not back:
            skip_gain, last = parameters.pop("skip_gain"), moved[f"{module}/~/conv2"]
            last["gain"], last["bias"] = last["gain"] * skip_gain, last["bias"] * skip_gain
    for name in (config.stem_name.format(0), "final_conv"):
        if "gain" in moved.get(root + name, {}):
            moved[root + name]["gain"] = moved[root + name]["gain"] / constant
    if "w" in moved.get(f"{root}linear", {}):
        moved[f"{root}linear"]["w"] = moved[f"{root}linear"]["w"] * constant
    return moved


def to_timm(tree: Tree, config: NFNetConfig) -> dict[str, np.ndarray]:
    """Timm's state dict, float32, of parameters ``{module: {parameter: array}}``.

    Args:
      tree: checked to be the model's.
      config: the model's settings.

    Raises:
      InputError: the network is batch-normalized.
    """
    modules = _modules(config)
    state = {}
    if not _is_nfnet(config):
        tree = _moved(tree, config)
    for module, parameters in tree.items():
        for name, array in parameters.items():
            if name == "gain":
                array = array * _correction(parameters["w"])
            layout = _layout(modules[module], name, array.ndim)
            full_name = f"{modules[module]}.{_PARAMETERS[name]}"
            state[full_name] = layout.to_timm(np.asarray(array, np.float32))
    return state


def from_timm(state: Arrays, config: NFNetConfig, wanted: Mapping[str, Mapping[str, int]]) -> Tree:
    """Parameters ``{module: {parameter: array}}``, float32, of timm's state dict.

    What has no counterpart keeps its name, and what is missing is left out, for a check to tell.

    Args:
      state: by timm's names.
      config: the model's settings.
      wanted: ``{module: {parameter: dimensions}}`` of the model.

    Raises:
      InputError: the network is batch-normalized.
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
    if not _is_nfnet(config):
        tree = _moved(tree, config, back=True)
        for module in wanted:
            if "skip_gain" in wanted[module]:
                tree.setdefault(module, {})["skip_gain"] = np.ones((), np.float32)
    for full_name, array in rest.items():
        module, _, name = full_name.rpartition(".")
        tree.setdefault(module, {})[name] = array
    return tree


def _modules(config: Any) -> dict[str, str]:
    if not isinstance(config, NFNetConfig):
        raise InputError("timm's names are known of normalizer-free networks alone")
    return dict(_names(config))


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
