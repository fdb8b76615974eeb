"""Weights of a normalizer-free network with its constants in them, for inference.

What a convolution is given, ``beta * c * f(x)``, it can be given as ``f(x)`` if its kernel is
multiplied by ``beta * c``; what is done with its output, ``alpha * skip_gain``, its kernel and bias
can do. ``nf_network(..., folded=True)`` computes with such weights.
"""

import jax
import jax.numpy as jnp

from nfnets_jax.models.layers import ACTIVATION_GAINS, Affine
from nfnets_jax.models.nf_block import BlockForm, BlockWeights
from nfnets_jax.models.nf_network import (
    NetworkWeights,
    NFNetworkConfig,
    StageWeights,
    expected_betas,
)

# A branch that is scaled by less is left out: to float32, beside activations of about one, it adds
# nothing, and the squeezing layer, which is scaled back, would overflow.
_LEAST_SCALE = 1e-12


def fold(weights: NetworkWeights, config: NFNetworkConfig, dtype: jnp.dtype) -> NetworkWeights:
    """Moves the activations' constants, beta, alpha and skip gains into the convolutions.

    The constant of the last activation stays, for the pooled features are an output.

    Args:
      weights: of ``network_weights`` in float32.
      config: the one that they were made by.
      dtype: of all that is returned but the classifier, which stays float32.
    """
    constant = ACTIVATION_GAINS[config.activation]
    betas = jnp.asarray(expected_betas(weights, config), jnp.float32)

    def block(block: BlockWeights, beta: jax.Array) -> BlockWeights:
        return _fold_block(block, constant, beta, config.alpha, config.family.block)

    stages, start = [], 0
    for stage, depth in zip(weights.stages, config.depth, strict=True):
        first, rest = betas[start], betas[start + 1 : start + depth]
        stages.append(
            StageWeights(
                block(stage.first, first),
                jax.vmap(block)(stage.rest, rest)
                if isinstance(stage.rest, BlockWeights)
                else tuple(map(block, stage.rest, rest)),
            )
        )
        start += depth
    stem = (weights.stem[0], *(_of_scaled_input(conv, constant) for conv in weights.stem[1:]))
    folded = weights._replace(stem=stem, stages=tuple(stages))
    cast: NetworkWeights = jax.tree.map(lambda array: array.astype(dtype), folded)
    return cast._replace(classifier=weights.classifier)


def _fold_block(
    weights: BlockWeights,
    constant: float,
    beta: jax.Array,
    alpha: float,
    form: BlockForm,
) -> BlockWeights:
    reduce, *others = weights.convolutions
    *spatial, expand = (_of_scaled_input(conv, constant) for conv in others)
    assert weights.skip_gain is not None  # It is not folded yet.
    scale = alpha * weights.skip_gain
    scale = jnp.where(jnp.abs(scale) < _LEAST_SCALE, 0, scale)
    gate = weights.squeeze_excite
    if gate is not None and not form.excites_bottleneck:
        squeeze, excite = gate
        gate = _of_scaled_input(squeeze, jnp.where(scale == 0, 0, 1 / scale)), excite
    shortcut = weights.shortcut
    return BlockWeights(
        convolutions=(
            _of_scaled_input(reduce, constant * beta),
            *spatial,
            Affine(expand.kernel * scale, expand.bias * scale),
        ),
        squeeze_excite=gate,
        skip_gain=None,
        shortcut=None if shortcut is None else _of_scaled_input(shortcut, constant * beta),
    )


def _of_scaled_input(weights: Affine, scale: float | jax.Array) -> Affine:
    """What does to ``x`` as the weights do to ``scale * x``."""
    return weights._replace(kernel=weights.kernel * scale)
