"""The normalizer-free residual block, the one that every normalizer-free network is made of.

``x -> shortcut(x) + alpha * skip_gain * branch(act(x) * beta)`` (NF-ResNets, section 3; the second
3x3 convolution and the skip gain are of NFNets, section 5). ``beta`` is one over the standard
deviation that the input has at initialization, known without looking at data: a block adds
``alpha**2`` to the variance of what it is given, and a transition block, whose shortcut starts from
the activated input, begins again at one.
"""

import dataclasses
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.models import layers


@dataclasses.dataclass(frozen=True)
class BlockForm:
    """In what the blocks of one family differ from another's.

    Attributes:
      name: of the block's module in the parameter tree.
      spatial: names of the 3x3 convolutions.
      expands_input: whether the bottleneck's width is counted from the channels that come in, not
        from those that go out.
      excites_bottleneck: whether squeeze-excite weighs what the 3x3 convolutions give, not what the
        branch gives.
      pools_shortcut: whether a shortcut of lower resolution takes the mean of 2x2 pixels, not one
        of the four.
    """

    name: str
    spatial: tuple[str, ...]
    expands_input: bool
    excites_bottleneck: bool
    pools_shortcut: bool


class BlockWeights(NamedTuple):
    """All arrays that one block's computation needs.

    ``skip_gain`` is None where alpha and it are in the last convolution (``models.folding``).
    """

    convolutions: tuple[layers.Affine, ...]
    squeeze_excite: tuple[layers.Affine, layers.Affine] | None
    skip_gain: jax.Array | None
    shortcut: layers.Affine | None


class BlockParameters(NamedTuple):
    """All arrays that one block learns."""

    convolutions: tuple[layers.ScaledKernel, ...]
    squeeze_excite: tuple[layers.Affine, layers.Affine] | None
    skip_gain: jax.Array
    shortcut: layers.ScaledKernel | None

    def weights(self, dtype: jnp.dtype) -> BlockWeights:
        """What the block computes with, in ``dtype``, kernels standardized."""
        gate = None
        if self.squeeze_excite:
            squeeze, excite = self.squeeze_excite
            gate = squeeze.weights(dtype), excite.weights(dtype)
        return BlockWeights(
            convolutions=tuple(kernel.weights(dtype) for kernel in self.convolutions),
            squeeze_excite=gate,
            skip_gain=self.skip_gain.astype(dtype),
            shortcut=self.shortcut.weights(dtype) if self.shortcut else None,
        )


class NFBlock(hk.Module):
    """The parameters of one block: bottleneck of 1x1, grouped 3x3 and 1x1 convolutions.

    A transition block, one that changes the resolution or the number of channels, has a 1x1
    convolution on its shortcut too. ``skip_gain`` is a scalar that starts at zero, so that the
    network starts as its shortcuts (SkipInit, De and Smith 2020, arXiv:2002.10444).
    """

    def __init__(
        self,
        input_channels: int,
        output_channels: int,
        *,
        form: BlockForm,
        stride: int,
        expansion: float,
        group_size: int | None,
        se_ratio: float,
        name: str | None = None,
    ):
        super().__init__(name or form.name)
        width = int((input_channels if form.expands_input else output_channels) * expansion)
        groups = 1
        if group_size is not None:
            groups = max(1, width // group_size)
            width = groups * group_size
        self._convolutions = (
            layers.WSConv2D(input_channels, width, 1, name="conv0"),
            *(layers.WSConv2D(width, width, 3, groups, name=name) for name in form.spatial),
            layers.WSConv2D(width, output_channels, 1, name="conv2"),
        )
        self._shortcut = (
            layers.WSConv2D(input_channels, output_channels, 1, name="conv_shortcut")
            if stride > 1 or input_channels != output_channels
            else None
        )
        excited = width if form.excites_bottleneck else output_channels
        hidden = max(1, int(excited * se_ratio))
        self._squeeze_excite = (
            layers.SqueezeExcite(excited, hidden, "squeeze_excite") if se_ratio > 0 else None
        )

    def parameters(self) -> BlockParameters:
        """The arrays that are learned."""
        return BlockParameters(
            convolutions=tuple(convolution.parameters() for convolution in self._convolutions),
            squeeze_excite=self._squeeze_excite.parameters() if self._squeeze_excite else None,
            skip_gain=hk.get_parameter("skip_gain", (), init=jnp.zeros),
            shortcut=self._shortcut.parameters() if self._shortcut else None,
        )


def nf_block(
    weights: BlockWeights,
    x: jax.Array,
    beta: float | jax.Array | None,
    keep: jax.Array | None = None,
    *,
    form: BlockForm,
    activation: layers.Activation,
    alpha: float,
    stride: int = 1,
) -> jax.Array:
    """Applies one block.

    Args:
      weights: of ``BlockParameters.weights``, in the dtype of ``x``.
      x: ``[N, H, W, I]``.
      beta: one over the expected standard deviation of ``x``; None where it is in the weights.
      keep: ``[N]`` booleans, which examples keep the branch (stochastic depth); None keeps all. As
        in the published networks a kept branch is not scaled up.
      form: the one that the weights were made by.
      activation: scaled to unit variance, by itself or by the weights that come next.
      alpha: standard deviation of what the branch adds, for a skip gain of one.
      stride: of the first 3x3 convolution; 2 halves the resolution.

    Returns:
      ``[N, ceil(H / stride), ceil(W / stride), O]``.
    """
    reduce, *spatial, expand = weights.convolutions

    # What is cheap is computed anew, not kept for the gradient: each array that the body of a loop
    # keeps is code of its own.
    @jax.checkpoint
    def entered(
        shortcut: layers.Affine | None, reduce: layers.Affine, x: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        activated = activation(x) if beta is None else activation(x) * beta
        branch = layers.convolve(reduce, activated)
        if shortcut is None:
            return x, branch
        if form.pools_shortcut and stride > 1:
            return layers.convolve(shortcut, layers.average_pool(activated)), branch
        return layers.convolve(shortcut, activated, stride), branch

    @jax.checkpoint
    def weighed(weights: BlockWeights, branch: jax.Array) -> jax.Array:
        # All that scales the branch does so in one pass over it.
        scale = jnp.ones((1, 1), x.dtype)
        if weights.skip_gain is not None:
            scale *= alpha * weights.skip_gain
        if weights.squeeze_excite is not None and not form.excites_bottleneck:
            scale = _twice_excited(weights.squeeze_excite, branch) * scale
        if keep is not None:
            scale = jnp.where(keep[:, None], scale, 0)
        return branch * scale[:, None, None, :]

    shortcut, branch = entered(weights.shortcut, reduce, x)
    for index, convolution in enumerate(spatial):
        branch = layers.convolve_activated(
            convolution, branch, activation, stride if index == 0 else 1
        )
    if weights.squeeze_excite is not None and form.excites_bottleneck:
        branch *= _twice_excited(weights.squeeze_excite, branch)[:, None, None, :]
    branch = layers.convolve_activated(expand, branch, activation)
    return shortcut + weighed(weights, branch)


def _twice_excited(weights: tuple[layers.Affine, layers.Affine], x: jax.Array) -> jax.Array:
    """Squeeze-excite, times two for its mean of one half (NF-ResNets, section 4.4)."""
    return 2 * layers.squeeze_excite(weights, x)
