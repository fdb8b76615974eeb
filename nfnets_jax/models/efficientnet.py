"""EfficientNets, a batch-normalized family that NFNets are measured against.

Tan and Le 2019, arXiv:1905.11946: the blocks of table 1 (inverted bottlenecks, Sandler et al. 2018,
arXiv:1801.04381, with squeeze-excite, Hu et al. 2018, arXiv:1709.01507), scaled in width, depth and
image size together (section 3.3). The factors are those of the networks as released.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models import layers
from nfnets_jax.models.batch_norm import BatchNorm, Conv2D
from nfnets_jax.models.nfnet import SqueezeExcite
from nfnets_jax.models.prepare import LayerStack
from nfnets_jax.ranges import PROBABILITY, Range, check_ranges

_REMAT = ("none", "block")


class Stage(NamedTuple):
    """Equal blocks in a row; channels and blocks are those of B0, before scaling."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    blocks: int


_STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
# For 32 pixels, of which the last stages see 4x4.
_SMALL_STRIDES = (1, 1, 2, 1, 1, 2, 1)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
# Channels are multiples of this.
_DIVISOR = 8


_RANGES = {
    "width_factor": Range(0, 1024, above=True),
    "depth_factor": Range(0, 1024, above=True),
    "train_size": Range(1, 2**20, whole=True),
    "test_size": Range(1, 2**20, whole=True),
    "dropout_rate": PROBABILITY,
    "stochastic_depth_rate": PROBABILITY,
    "se_ratio": Range(0, 1024, above=True),
}


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """The options of an EfficientNet.

    Attributes:
      width_factor: channels over those of B0.
      depth_factor: blocks of each stage over those of B0.
      train_size, test_size: published side of the square images, in pixels.
      test_crop: how images are cropped for evaluation, as published.
      dropout_rate: of the pooled features.
      stochastic_depth_rate: probability of dropping a block's branch; it rises from 0 at the first
        block in proportion to the number of blocks before it. Training scales kept branches up, as
        published.
      se_ratio: hidden units of squeeze-excite over the block's input channels.
      stages: B0's stages, before scaling.
      sync_axis: the axis of a ``jax.pmap`` over whose devices batches are normalized together,
        ``"devices"`` in the training step here; empty normalizes on each device alone.
      remat: ``"block"`` rematerializes each block from its input in the backward pass; ``"none"``
        keeps all residuals.

    Raises:
      InputError: no such ``remat``, or numbers out of their ranges.
    """

    width_factor: float
    depth_factor: float
    train_size: int
    test_size: int
    dropout_rate: float
    stochastic_depth_rate: float = 0.2
    se_ratio: float = 0.25
    stages: tuple[Stage, ...] = _STAGES
    sync_axis: str = ""
    remat: str = "none"
    test_crop: str = "padded"

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.remat not in _REMAT:
            raise InputError(f"no remat {self.remat!r}; there are {', '.join(_REMAT)}")

    @property
    def classifier(self) -> str:
        """Full name of the classifier's module."""
        return "EfficientNet/linear"

    @property
    def first_conv(self) -> str:
        """Full name of the first convolution's module."""
        return "EfficientNet/stem_conv"

    @property
    def layer_stacks(self) -> tuple[LayerStack, ...]:
        """None: every block has arrays of its own."""
        return ()

    def network(self, num_classes: int, policy: Policy, prepared: bool) -> "EfficientNet":
        """Makes the module, inside a ``hk.transform``; prepared parameters are the same."""
        del prepared
        return EfficientNet(self, num_classes, policy)


# B0 to B7: width, depth, image size, dropout rate.
_SCALED = (
    (1.0, 1.0, 224, 0.2),
    (1.0, 1.1, 240, 0.2),
    (1.1, 1.2, 260, 0.3),
    (1.2, 1.4, 300, 0.3),
    (1.4, 1.8, 380, 0.4),
    (1.6, 2.2, 456, 0.4),
    (1.8, 2.6, 528, 0.5),
    (2.0, 3.1, 600, 0.5),
)

_PUBLISHED = {
    f"efficientnet_b{index}": EfficientNetConfig(width, depth, size, size, dropout_rate)
    for index, (width, depth, size, dropout_rate) in enumerate(_SCALED)
}

VARIANTS: Mapping[str, EfficientNetConfig] = MappingProxyType(
    {
        **_PUBLISHED,
        "efficientnet_b0_small": dataclasses.replace(
            _PUBLISHED["efficientnet_b0"],
            train_size=32,
            test_size=32,
            stages=tuple(
                stage._replace(stride=stride)
                for stage, stride in zip(_STAGES, _SMALL_STRIDES, strict=True)
            ),
        ),
    }
)


class EfficientNet(hk.Module):
    """An EfficientNet; ``config`` and ``policy`` are the options, and how it convolves."""

    def __init__(self, config: EfficientNetConfig, num_classes: int, policy: Policy | None = None):
        super().__init__("EfficientNet")
        self._config = config
        self._num_classes = num_classes
        self._policy = policy

    def __call__(
        self,
        images: jax.Array,
        keys: jax.Array | None = None,
        is_training: bool = False,
        features: bool = False,
    ) -> dict[str, jax.Array]:
        """Classifies images.

        Args:
          images: ``[N, H, W, C]`` floats, normalized, in the dtype to compute in.
          keys: ``[N]`` random keys, one an example, for stochastic depth and dropout; None turns
            both off.
          is_training: whether batches are normalized by their own statistics.
          features: also return the output of each stage.

        Returns:
          ``pool`` ``[N, features]`` and, unless ``num_classes`` is 0, ``logits``
          ``[N, num_classes]``, float32; with ``features`` also ``stage_1`` ...
          ``[N, h, w, width]`` in the compute dtype.
        """
        config, policy, outputs = self._config, self._policy, {}
        convolve = functools.partial(
            _convolve, config=config, policy=policy, is_training=is_training
        )
        with jax.named_scope("stem"):
            x = jax.nn.silu(convolve(images, self._channels(_STEM_CHANNELS), 3, 2, name="stem"))
        depths = [math.ceil(config.depth_factor * stage.blocks) for stage in config.stages]
        keep = layers.kept_branches(keys, config.stochastic_depth_rate, sum(depths))
        if keep is not None:
            keep /= 1 - layers.drop_rates(config.stochastic_depth_rate, sum(depths))[:, None]
        index = 0
        for number, (stage, depth) in enumerate(zip(config.stages, depths, strict=True), start=1):
            width = self._channels(stage.channels)
            with jax.named_scope(f"stage_{number}"):
                for place in range(depth):
                    stride = stage.stride if place == 0 else 1
                    block = _Block(config, stage.expansion, stage.kernel, stride, width, policy)
                    run = functools.partial(block, is_training=is_training)
                    if config.remat == "block":
                        run = hk.remat(run)
                    x = run(x, None if keep is None else keep[index])
                    index += 1
            if features:
                outputs[f"stage_{number}"] = x
        with jax.named_scope("head"):
            x = jax.nn.silu(convolve(x, self._channels(_HEAD_CHANNELS), 1, name="head"))
            outputs["pool"] = pool = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
            if self._num_classes:
                linear = layers.Linear(self._num_classes, std=0.01, name="linear")
                outputs["logits"] = linear(layers.dropout(keys, pool, config.dropout_rate))
        return outputs

    def _channels(self, channels: int) -> int:
        """Scales a width of B0, rounded to a multiple of 8 that is at least 90% of the result."""
        scaled = self._config.width_factor * channels
        nearest = max(_DIVISOR, int(scaled / _DIVISOR + 0.5) * _DIVISOR)
        return nearest if nearest >= 0.9 * scaled else nearest + _DIVISOR


class _Block(hk.Module):
    """An inverted bottleneck: 1x1 up, depthwise, squeeze-excite, 1x1 down, added to its input."""

    def __init__(
        self,
        config: EfficientNetConfig,
        expansion: int,
        kernel: int,
        stride: int,
        width: int,
        policy: Policy | None,
    ):
        super().__init__("block")
        self._policy = policy
        self._config = config
        self._expansion = expansion
        self._kernel = kernel
        self._stride = stride
        self._width = width

    def __call__(self, x: jax.Array, keep: jax.Array | None, is_training: bool) -> jax.Array:
        """Maps ``[N, H, W, I]`` to ``[N, ceil(H / stride), ceil(W / stride), width]``.

        ``keep`` ``[N]`` scales each example's branch, 0 where stochastic depth drops it; None keeps
        all.
        """
        config, channels = self._config, x.shape[-1]
        inner = channels * self._expansion
        convolve = functools.partial(
            _convolve, config=config, policy=self._policy, is_training=is_training
        )
        branch = x
        if self._expansion > 1:
            branch = jax.nn.silu(convolve(branch, inner, 1, name="expand"))
        branch = convolve(branch, inner, self._kernel, self._stride, inner, name="depthwise")
        branch = jax.nn.silu(branch)
        hidden = max(1, int(channels * config.se_ratio))
        factors = SqueezeExcite(inner, hidden, jax.nn.silu, name="squeeze_excite")(branch)
        branch = convolve(branch * factors, self._width, 1, name="project")
        if self._stride > 1 or channels != self._width:
            return branch
        if keep is not None:
            branch *= keep.astype(x.dtype)[:, None, None, None]
        return x + branch


def _convolve(
    x: jax.Array,
    channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    *,
    config: EfficientNetConfig,
    policy: Policy | None,
    is_training: bool,
    name: str,
) -> jax.Array:
    """Convolves and normalizes; the moving averages are slower than ResNets', as published."""
    x = Conv2D(channels, kernel, stride, groups, policy=policy, name=f"{name}_conv")(x)
    norm = BatchNorm(config.sync_axis, decay=0.99, epsilon=1e-3, name=f"{name}_norm")
    return norm(x, is_training)
