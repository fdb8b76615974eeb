"""NFNets: the networks of Brock et al. 2021b, arXiv:2102.06171, section 5, and small relatives."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.models import layers
from nfnets_jax.models.nf_block import NFBlock, nf_block


@dataclasses.dataclass(frozen=True)
class NFNetConfig:
    """One variant of the family. A field a stage holds as many entries as there are stages.

    Attributes:
      width: output channels of each stage.
      depth: blocks of each stage.
      stem: (output channels, stride) of each 3x3 convolution before the first stage.
      strides: of each stage's first block.
      train_size, test_size: published side of the square images, in pixels.
      dropout_rate: of the pooled features.
      stochastic_depth_rate: probability of dropping a block's branch, rising from 0 at the first
        block in proportion to the number of blocks before it.
      expansion: width of the bottleneck over the width of the stage.
      group_size: channels a group of the 3x3 convolutions.
      se_ratio: hidden units of squeeze-excite over its channels.
      final_expansion: channels of the last 1x1 convolution over the width of the last stage.
      alpha: standard deviation that each block adds.
      activation: a key of ``layers.ACTIVATION_GAINS``.
    """

    width: tuple[int, ...]
    depth: tuple[int, ...]
    stem: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    train_size: int
    test_size: int
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    expansion: float = 0.5
    group_size: int = 128
    se_ratio: float = 0.5
    final_expansion: int = 2
    alpha: float = 0.2
    activation: str = "gelu"


def _imagenet(
    scale: int, train_size: int, test_size: int, dropout_rate: float, wide: bool
) -> NFNetConfig:
    """F``scale - 1``: the blocks of F0 times ``scale`` (NFNets, table 1 and appendix)."""
    width = (384, 768, 2048, 2048) if wide else (256, 512, 1536, 1536)
    return NFNetConfig(
        width=width,
        depth=(scale, 2 * scale, 6 * scale, 3 * scale),
        stem=((16, 2), (32, 1), (64, 1), (width[0] // 2, 2)),
        strides=(1, 2, 2, 2),
        train_size=train_size,
        test_size=test_size,
        dropout_rate=dropout_rate,
        stochastic_depth_rate=0.25,
    )


# What grows with the variant: training size, test size, dropout rate.
_SCALED = (
    (192, 256, 0.2),
    (224, 320, 0.3),
    (256, 352, 0.4),
    (320, 416, 0.4),
    (384, 512, 0.5),
    (416, 544, 0.5),
    (448, 576, 0.5),
    (480, 608, 0.5),
)

VARIANTS: Mapping[str, NFNetConfig] = MappingProxyType(
    {
        **{
            f"nfnet_f{index}{suffix}": _imagenet(index + 1, *scaled, wide=bool(suffix))
            for suffix in ("", "_plus")
            for index, scaled in enumerate(_SCALED)
        },
        # For small images: no resolution is lost before the first stage.
        "nfnet_micro": NFNetConfig(
            width=(64, 128, 256),
            depth=(1, 1, 1),
            stem=((32, 1),),
            strides=(1, 2, 2),
            train_size=16,
            test_size=16,
            group_size=32,
        ),
        "nfnet_tiny": NFNetConfig(
            width=(64, 128, 256, 256),
            depth=(1, 2, 3, 1),
            stem=((16, 1), (32, 1)),
            strides=(1, 2, 2, 2),
            train_size=32,
            test_size=32,
            group_size=32,
        ),
    }
)


class NFNet(hk.Module):
    """A normalizer-free network with the parameter names of the published ones.

    Args:
      config: the variant.
      num_classes: length of the logits.
      dtype: of the computation; parameters, weight standardization, pooling and logits are float32.
      features: also return the output of each stage.
    """

    def __init__(
        self,
        config: NFNetConfig,
        num_classes: int,
        input_channels: int,
        dtype: jnp.dtype,
        features: bool = False,
        name: str = "NFNet",
    ):
        super().__init__(name)
        self._config = config
        self._dtype = dtype
        self._features = features
        channels = input_channels
        self._stem = []
        for index, (width, stride) in enumerate(config.stem):
            convolution = layers.WSConv2D(channels, width, 3, name=f"stem_conv{index}")
            self._stem.append((convolution, stride))
            channels = width
        self._stages: list[list[NFBlock]] = []
        for width, depth, stride in zip(config.width, config.depth, config.strides, strict=True):
            stage = []
            for index in range(depth):
                block = NFBlock(
                    channels,
                    width,
                    stride=stride if index == 0 else 1,
                    expansion=config.expansion,
                    group_size=config.group_size,
                    se_ratio=config.se_ratio,
                )
                stage.append(block)
                channels = width
            self._stages.append(stage)
        final_channels = config.final_expansion * channels
        self._final_conv = layers.WSConv2D(channels, final_channels, 1, name="final_conv")
        self._linear = layers.Linear(final_channels, num_classes, std=0.01, name="linear")

    def __call__(self, images: jax.Array, keys: jax.Array | None = None) -> dict[str, jax.Array]:
        """Classifies images.

        Args:
          images: ``[N, H, W, C]`` floats, normalized.
          keys: ``[N]`` random keys, one an example, for stochastic depth and dropout; None turns
            both off.

        Returns:
          ``logits`` ``[N, num_classes]`` and ``pool`` ``[N, final channels]``, float32; with
          ``features`` also ``stage_1`` ... ``[N, h, w, width]`` in the compute dtype.
        """
        config, dtype = self._config, self._dtype
        activation = layers.scaled_activation(config.activation)
        x = images.astype(dtype)
        for index, (convolution, stride) in enumerate(self._stem):
            x = layers.convolve(convolution.weights(dtype), activation(x) if index else x, stride)

        keep = self._survivors(keys)
        outputs, position, expected_variance = {}, 0, 1.0
        for number, stage in enumerate(self._stages, start=1):
            for block in stage:
                x = nf_block(
                    block.weights(dtype),
                    x,
                    activation=activation,
                    alpha=config.alpha,
                    beta=1 / math.sqrt(expected_variance),
                    stride=block.stride,
                    keep=None if keep is None else keep[position],
                )
                if block.is_transition:
                    expected_variance = 1.0
                expected_variance += config.alpha**2
                position += 1
            if self._features:
                outputs[f"stage_{number}"] = x

        x = activation(layers.convolve(self._final_conv.weights(dtype), x))
        pool = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        classifier = self._linear.weights(jnp.float32)
        if keys is not None and config.dropout_rate > 0:
            dropped = layers.dropout(
                jax.vmap(jax.random.fold_in, (0, None))(keys, 1), pool, config.dropout_rate
            )
            logits = layers.linear(classifier, dropped)
        else:
            logits = layers.linear(classifier, pool)
        return {**outputs, "pool": pool, "logits": logits}

    def _survivors(self, keys: jax.Array | None) -> jax.Array | None:
        """Which examples keep which block's branch, ``[blocks, N]``; None where all do."""
        rate, blocks = self._config.stochastic_depth_rate, sum(self._config.depth)
        if keys is None or rate == 0:
            return None
        return layers.survivors(
            jax.vmap(jax.random.fold_in, (0, None))(keys, 0), rate * jnp.arange(blocks) / blocks
        )
