"""Converts parameters to timm's names, layouts and standardization, and back.

timm's convolutions divide by ``sqrt(var + 1e-5)``, the published ones by
``sqrt(max(var, 1e-4 / fan_in))``. With the same gains a kernel of 1152 inputs a unit would be half
a percent smaller, so the conversion corrects the gains.

timm's NF-ResNets and NF-RegNets have no skip gains, and multiply kernels instead of activations by
the activation's gain. There the gains and biases of the blocks' last convolutions hold the skip
gains, the gains of kernels without an activated input undo the activation's gain, and the
classifier's matrix holds it.
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

# Modules of a block.
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
    """timm's layout of a parameter: the order of its axes, and axes of size 1 added at the end."""

    axes: tuple[int, ...]
    added: int = 0

    def to_timm(self, array: np.ndarray) -> np.ndarray:
        moved = array.transpose(self.axes)
        return moved.reshape(moved.shape + (1,) * self.added)

    def from_timm(self, array: np.ndarray) -> np.ndarray:
        kept = array.reshape(array.shape[: array.ndim - self.added])
        return kept.transpose(np.argsort(self.axes).astype(int))


def _names(config: NFNetConfig) -> Iterator[tuple[str, str]]:
    """Yields every module's name with timm's name for it."""
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
    """Returns whether timm has the same skip gains and scaled activations."""
    return config.name == "NFNet"


def _moved(tree: Tree, config: NFNetConfig, back: bool = False) -> Tree:
    """Moves skip gains and activation gains to where timm has them, or ``back``.

    On the way back the skip gains are 1.
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
    """Converts parameters ``{module: {parameter: array}}`` to timm's state dict, float32.

    Args:
      tree: the model's parameters.
      config: the model's options.

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


def from_timm(
    state: Arrays, config: NFNetConfig, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Tree:
    """Converts timm's state dict to parameters ``{module: {parameter: array}}``, float32.

    Unknown arrays keep their names and missing ones are left out: a later check names them.

    Args:
      state: arrays by timm's names.
      config: the model's options.
      shapes: ``{module: {parameter: shape}}`` of the model.

    Raises:
      InputError: the network is batch-normalized.
    """
    modules = _modules(config)
    rest, tree = dict(state), Tree()
    for module, parameters in shapes.items():
        for name, shape in parameters.items():
            dimensions = len(shape)
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
        for module in shapes:
            if "skip_gain" in shapes[module]:
                tree.setdefault(module, {})["skip_gain"] = np.ones((), np.float32)
    for full_name, array in rest.items():
        module, _, name = full_name.rpartition(".")
        tree.setdefault(module, {})[name] = array
    return tree


def _modules(config: Any) -> dict[str, str]:
    if not isinstance(config, NFNetConfig):
        raise InputError("only normalizer-free networks convert to timm's names")
    return dict(_names(config))


def _layout(timm_module: str, name: str, dimensions: int) -> _Layout:
    """Returns timm's layout of a parameter with this number of dimensions."""
    if name == "gain":
        return _Layout((0,), added=3)
    if name != "w":
        return _Layout(tuple(range(dimensions)))
    if dimensions == 4:
        return _Layout((3, 2, 0, 1))  # HWIO to OIHW.
    # Squeeze-excite's layers are convolutions there.
    return _Layout((1, 0), added=0 if timm_module.startswith("head") else 2)


def _correction(w: np.ndarray) -> np.ndarray:
    """Returns timm's gains over ours, ``[O]``, for a kernel ``w`` ``[..., O]``."""
    units = w.reshape(-1, w.shape[-1]).astype(np.float64)
    variance = units.var(axis=0)
    return np.sqrt((variance + _TIMM_EPS) / np.maximum(variance, _EPS / len(units)))
