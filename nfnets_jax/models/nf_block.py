"""The normalizer-free residual block, the one that every normalizer-free network is made of.

``x -> shortcut(x) + alpha * skip_gain * branch(act(x) * beta)`` (NF-ResNets, section 3; the second
3x3 convolution and the skip gain are of NFNets, section 5). ``beta`` is one over the standard
deviation that the input has at initialization, known without looking at data: a block adds
``alpha**2`` to the variance of what it is given, and a transition block, whose shortcut starts from
the activated input, begins again at one.
"""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.models import layers


class BlockWeights(NamedTuple):
    """All arrays that one block's computation needs."""

    convolutions: tuple[layers.Affine, ...]
    squeeze_excite: tuple[layers.Affine, layers.Affine]
    skip_gain: jax.Array
    shortcut: layers.Affine | None


class BlockParameters(NamedTuple):
    """All arrays that one block learns."""

    convolutions: tuple[layers.ScaledKernel, ...]
    squeeze_excite: tuple[layers.Affine, layers.Affine]
    skip_gain: jax.Array
    shortcut: layers.ScaledKernel | None

    def weights(self, dtype: jnp.dtype) -> BlockWeights:
        """What the block computes with, in ``dtype``, kernels standardized."""
        squeeze, excite = self.squeeze_excite
        return BlockWeights(
            convolutions=tuple(kernel.weights(dtype) for kernel in self.convolutions),
            squeeze_excite=(squeeze.weights(dtype), excite.weights(dtype)),
            skip_gain=self.skip_gain.astype(dtype),
            shortcut=self.shortcut.weights(dtype) if self.shortcut else None,
        )


class NFBlock(hk.Module):
    """The parameters of one block: bottleneck of 1x1, two grouped 3x3 and 1x1 convolutions.

    A transition block, one that changes the resolution or the number of channels, has a 1x1
    convolution on its shortcut too. ``skip_gain`` is a scalar that starts at zero, so that the
    network starts as its shortcuts (SkipInit, De and Smith 2020, arXiv:2002.10444).
    """

    def __init__(
        self,
        input_channels: int,
        output_channels: int,
        *,
        stride: int,
        expansion: float,
        group_size: int,
        se_ratio: float,
        name: str | None = None,
    ):
        super().__init__(name)
        groups = max(1, int(output_channels * expansion) // group_size)
        width = groups * group_size
        self.stride = stride
        self.is_transition = stride > 1 or input_channels != output_channels
        self._convolutions = (
            layers.WSConv2D(input_channels, width, 1, name="conv0"),
            layers.WSConv2D(width, width, 3, groups, name="conv1"),
            layers.WSConv2D(width, width, 3, groups, name="conv1b"),
            layers.WSConv2D(width, output_channels, 1, name="conv2"),
        )
        self._shortcut = (
            layers.WSConv2D(input_channels, output_channels, 1, name="conv_shortcut")
            if self.is_transition
            else None
        )
        self._squeeze_excite = layers.SqueezeExcite(output_channels, se_ratio, "squeeze_excite")

    def parameters(self) -> BlockParameters:
        """The arrays that are learned."""
        return BlockParameters(
            convolutions=tuple(convolution.parameters() for convolution in self._convolutions),
            squeeze_excite=self._squeeze_excite.parameters(),
            skip_gain=hk.get_parameter("skip_gain", (), init=jnp.zeros),
            shortcut=self._shortcut.parameters() if self._shortcut else None,
        )


def nf_block(
    weights: BlockWeights,
    x: jax.Array,
    beta: float | jax.Array,
    keep: jax.Array | None = None,
    *,
    activation: layers.Activation,
    alpha: float,
    stride: int = 1,
    looped: bool = False,
) -> jax.Array:
    """Applies one block.

    Args:
      weights: of ``BlockParameters.weights``, in the dtype of ``x``.
      x: ``[N, H, W, I]``.
      beta: one over the expected standard deviation of ``x``.
      keep: ``[N]`` booleans, which examples keep the branch (stochastic depth); None keeps all. As
        in the published networks a kept branch is not scaled up.
      activation: scaled to unit variance.
      alpha: standard deviation of what the branch adds, for a skip gain of one.
      stride: of the first 3x3 convolution; 2 halves the resolution.
      looped: whether this is compiled as the body of a loop over blocks.

    Returns:
      ``[N, ceil(H / stride), ceil(W / stride), O]``.
    """
    reduce, *spatial, expand = weights.convolutions
    activated = activation(x) * beta
    shortcut = x
    if weights.shortcut is not None:
        pooled = layers.average_pool(activated) if stride > 1 else activated
        shortcut = layers.convolve(weights.shortcut, pooled)
    branch = layers.convolve(reduce, activated)
    for index, convolution in enumerate((*spatial, expand)):
        branch = layers.convolve_activated(
            convolution, branch, activation, stride if index == 0 else 1, looped=looped
        )
    # All that scales the branch does so in one pass over it.
    scale = layers.squeeze_excite(weights.squeeze_excite, branch) * (alpha * weights.skip_gain)
    if keep is not None:
        scale = jnp.where(keep[:, None], scale, 0)
    return shortcut + branch * scale[:, None, None, :]
