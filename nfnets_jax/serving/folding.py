"""Folds the constants of a normalizer-free network into its weights, for inference.

A convolution of ``beta * c * f(x)`` is one of ``f(x)`` with its kernel multiplied by ``beta * c``,
and ``alpha * skip_gain`` times its output is the output of a kernel and a bias so multiplied.
``NFNet(..., folded=True)`` computes with such weights.
"""

from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.models.layers import ACTIVATION_GAINS
from nfnets_jax.models.nfnet import NFNetConfig

Module = Mapping[str, jax.Array]

# A branch with a smaller scale is left out: beside activations of about one it adds nothing in
# float32, and the squeezing layer, which is divided by the scale, would overflow.
_LEAST_SCALE = 1e-12


def fold(params: Mapping[str, Module], config: NFNetConfig) -> hk.MutableParams:
    """Moves the activations' gains, beta, alpha and skip gains into the convolutions.

    The gain of the last activation stays, as the pooled features are an output.

    Args:
      params: float32, as ``Model.prepare`` returns them for an ``NFNet``.
      config: the network's options; its blocks are ``NFBlock``.

    Returns:
      Parameters of the same form.
    """
    gain = ACTIVATION_GAINS[config.activation]
    folded: hk.MutableParams = {module: dict(values) for module, values in params.items()}
    for index in range(1, len(config.stem)):
        name = f"{config.name}/~/{config.stem_name.format(index)}"
        folded[name] = _scale_input(folded[name], gain)
    betas, start = jnp.asarray(config.betas, jnp.float32), 0
    stacks = {stack.layers: stack.name for stack in config.layer_stacks if stack.name in params}
    for names in config.block_names:
        blocks = tuple(f"{config.name}/~/{name}" for name in names)
        rest = stacks.get(blocks[1:])
        singles = blocks if rest is None else blocks[:1]
        for beta, block in zip(betas[start:], singles, strict=False):
            _fold_block(folded, block, beta, gain, config)
        if rest is not None:
            _fold_block(folded, rest, betas[start + 1 : start + len(blocks)], gain, config)
        start += len(blocks)
    return folded


def _fold_block(
    params: hk.MutableParams, block: str, beta: jax.Array, gain: float, config: NFNetConfig
) -> None:
    """Folds one block in place, or equal blocks whose arrays and ``beta`` have a leading axis."""
    scale = config.alpha * params[block]["skip_gain"]
    scale = jnp.where(jnp.abs(scale) < _LEAST_SCALE, 0, scale)
    # The block still multiplies by alpha and its skip gain: together by one.
    params[block]["skip_gain"] = jnp.full_like(scale, 1 / config.alpha)
    for conv in ("conv0", "conv_shortcut"):
        if f"{block}/~/{conv}" in params:
            name = f"{block}/~/{conv}"
            params[name] = _scale_input(params[name], gain * beta)
    for conv in (*config.spatial, "conv2"):
        name = f"{block}/~/{conv}"
        params[name] = _scale_input(params[name], gain)
    last = params[f"{block}/~/conv2"]
    for name in ("w", "bias"):
        last[name] = last[name] * _per_layer(scale, last[name])
    squeeze = f"{block}/~/squeeze_excite/~/linear"
    if squeeze in params and not config.excites_bottleneck:
        undone = jnp.where(scale == 0, 0, 1 / scale)
        params[squeeze] = _scale_input(params[squeeze], undone)


def _scale_input(module: Module, scale: float | jax.Array) -> dict[str, Any]:
    """Returns a layer that does to ``x`` what the given one does to ``scale * x``."""
    return {**module, "w": module["w"] * _per_layer(scale, module["w"])}


def _per_layer(scale: float | jax.Array, array: jax.Array) -> jax.Array:
    """Adds axes to ``scale``, a number or one a layer, so that it multiplies the array."""
    scale = jnp.asarray(scale)
    return scale.reshape(scale.shape + (1,) * (array.ndim - scale.ndim))
