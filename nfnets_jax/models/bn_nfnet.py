"""Batch-normalized NFNets: the same networks, against which NFNets are measured.

Brock et al. 2021b, arXiv:2102.06171, section 6.1 and table 6, train their architectures "with batch
normalization instead of the NF strategy", which is 20% to 40% slower; F4 and F5 were not stable in
bfloat16. Widths, depths, groups, second 3x3 convolutions, squeeze-excite, stochastic depth and
dropout are those of NFNets. The strategy that goes (section 5.1 and appendix C) is scaled weight
standardization with its gains and biases, ``beta`` and ``alpha``, SkipInit, the scaled activations
and squeeze-excite's factor of 2, which is there to keep the variance.

The paper does not say where the normalization is. The blocks are pre-activated, and in the authors'
batch-normalized ResNets of that kind (``nfnets/resnet.py`` of deepmind-research) each nonlinearity
is preceded by batch normalization, and so it is here; a shortcut's convolution takes the normalized
and activated input, as in NFNets. Batches are normalized on each device alone, as in the paper.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models import layers, nfnet
from nfnets_jax.models.batch_norm import BatchNorm, Conv2D
from nfnets_jax.models.nfnet import NFNetConfig, SqueezeExcite, bottleneck, check_stages
from nfnets_jax.models.prepare import LayerStack
from nfnets_jax.ranges import PROBABILITY, SHARE, Range, check_ranges

_REMAT = ("none", "block")

_COUNT = Range(1, 2**20, whole=True)
_RANGES = {
    "width": _COUNT,
    "depth": Range(1, 10**4, whole=True),
    "group_size": _COUNT,
    "expansion": Range(0, 1024, above=True),
    "se_ratio": Range(0, 1024),
    "final_expansion": Range(0, 1024),
    "train_size": _COUNT,
    "test_size": _COUNT,
    "dropout_rate": PROBABILITY,
    "stochastic_depth_rate": SHARE,
}


@dataclasses.dataclass(frozen=True)
class BatchNormNFNetConfig:
    """The options of a batch-normalized NFNet; ``NFNetConfig`` has most of them too.

    Attributes:
      width: output channels of each stage.
      depth: blocks of each stage.
      stem: (output channels, stride) of each convolution before the first stage.
      strides: of each stage's first block.
      group_size: channels in a group of the 3x3 convolutions; None does not group them.
      expansion: width of the bottleneck over the block's output channels, or its input channels
        with ``expands_input``.
      se_ratio: hidden units of squeeze-excite over its channels; 0 leaves squeeze-excite out.
      final_expansion: channels of the last 1x1 convolution over the width of the last stage; 0
        leaves the convolution out.
      spatial: names of a block's 3x3 convolutions.
      expands_input: whether ``expansion`` counts from the block's input channels.
      excites_bottleneck: whether squeeze-excite scales the output of the 3x3 convolutions, and not
        that of the branch.
      activation: a key of ``layers.ACTIVATION_GAINS``; it is not scaled.
      train_size, test_size: published side of the square images, in pixels.
      dropout_rate: of the pooled features.
      stochastic_depth_rate: probability of dropping a block's branch; it rises from 0 at the first
        block in proportion to the number of blocks before it.
      sync_axis: the axis of a ``jax.pmap`` over whose devices batches are normalized together,
        ``"devices"`` in the training step here; empty normalizes on each device alone.
      remat: ``"block"`` rematerializes each block from its input in the backward pass; ``"none"``
        keeps all residuals.
      test_crop: how images are cropped for evaluation, as published.

    Raises:
      InputError: no such ``remat``, numbers out of their ranges, or of stages that differ.
    """

    width: tuple[int, ...]
    depth: tuple[int, ...]
    stem: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    group_size: int | None
    train_size: int
    test_size: int
    expansion: float = 0.5
    se_ratio: float = 0.5
    final_expansion: float = 2.0
    spatial: tuple[str, ...] = ("conv1", "conv1b")
    expands_input: bool = False
    excites_bottleneck: bool = False
    activation: str = "gelu"
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    sync_axis: str = ""
    remat: str = "none"
    test_crop: str = "squash"

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.remat not in _REMAT:
            raise InputError(f"no remat {self.remat!r}; there are {', '.join(_REMAT)}")
        check_stages(self)

    @property
    def classifier(self) -> str:
        """Full name of the classifier's module."""
        return "BatchNormNFNet/linear"

    @property
    def first_conv(self) -> str:
        """Full name of the first convolution's module."""
        return "BatchNormNFNet/stem_conv0"

    @property
    def layer_stacks(self) -> tuple[LayerStack, ...]:
        """None: every block has arrays of its own."""
        return ()

    def network(self, num_classes: int, policy: Policy, prepared: bool) -> "BatchNormNFNet":
        """Makes the module, inside a ``hk.transform``; prepared parameters are the same."""
        del prepared
        return BatchNormNFNet(self, num_classes, policy)


class BatchNormNFNet(hk.Module):
    """A batch-normalized NFNet; ``config`` and ``policy`` are the options, and how it convolves."""

    def __init__(
        self, config: BatchNormNFNetConfig, num_classes: int, policy: Policy | None = None
    ):
        super().__init__("BatchNormNFNet")
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
        config, outputs = self._config, {}
        activate = functools.partial(_activate, config=config, is_training=is_training)
        conv = functools.partial(Conv2D, policy=self._policy)
        x = images
        with jax.named_scope("stem"):
            for index, (channels, stride) in enumerate(config.stem):
                x = activate(x, name=f"stem_norm{index}") if index else x
                x = conv(channels, 3, stride, name=f"stem_conv{index}")(x)

        keep = layers.kept_branches(keys, config.stochastic_depth_rate, sum(config.depth))
        index = 0
        stages = zip(config.width, config.depth, config.strides, strict=True)
        for number, (width, depth, first_stride) in enumerate(stages, start=1):
            with jax.named_scope(f"stage_{number}"):
                for stride in (first_stride, *[1] * (depth - 1)):
                    block = _Block(config, width, stride, self._policy)
                    run = functools.partial(block, is_training=is_training)
                    if config.remat == "block":
                        run = hk.remat(run)
                    x = run(x, None if keep is None else keep[index])
                    index += 1
            if features:
                outputs[f"stage_{number}"] = x

        with jax.named_scope("head"):
            if config.final_expansion > 0:
                x = conv(int(config.final_expansion * x.shape[-1]), 1, name="final_conv")(x)
            x = activate(x, name="final_norm")
            outputs["pool"] = pool = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
            if self._num_classes:
                linear = layers.Linear(self._num_classes, 0.01, name="linear")
                outputs["logits"] = linear(layers.dropout(keys, pool, config.dropout_rate))
        return outputs


class _Block(hk.Module):
    """A pre-activated bottleneck of 1x1, grouped 3x3 and 1x1 convolutions, and a shortcut."""

    def __init__(
        self, config: BatchNormNFNetConfig, width: int, stride: int, policy: Policy | None
    ):
        super().__init__("block")
        self._config = config
        self._width = width
        self._stride = stride
        self._conv = functools.partial(Conv2D, policy=policy)

    def __call__(self, x: jax.Array, keep: jax.Array | None, is_training: bool) -> jax.Array:
        """Maps ``[N, H, W, I]`` to ``[N, ceil(H / stride), ceil(W / stride), width]``.

        ``keep`` ``[N]`` is whether stochastic depth keeps an example's branch; None keeps all. A
        kept branch is not scaled up, as in NFNets.
        """
        config, width, stride, conv = self._config, self._width, self._stride, self._conv
        activate = functools.partial(_activate, config=config, is_training=is_training)
        inner, groups = bottleneck(config, x.shape[-1], width, config.expansion)

        out = activate(x, name="norm0")
        shortcut = x
        if stride > 1 or x.shape[-1] != width:
            shortcut = layers.average_pool(out) if stride > 1 else out
            shortcut = conv(width, 1, name="conv_shortcut")(shortcut)
        out = conv(inner, 1, name="conv0")(out)
        for index, name in enumerate(config.spatial):
            out = activate(out, name=f"norm{name.removeprefix('conv')}")
            out = conv(inner, 3, stride if index == 0 else 1, groups, name=name)(out)
        excited = inner if config.excites_bottleneck else width
        hidden = max(1, int(excited * config.se_ratio))
        squeeze_excite = SqueezeExcite(excited, hidden, name="squeeze_excite")
        if config.se_ratio > 0 and config.excites_bottleneck:
            out = squeeze_excite(out) * out
        out = conv(width, 1, name="conv2")(activate(out, name="norm2"))
        if config.se_ratio > 0 and not config.excites_bottleneck:
            out = squeeze_excite(out) * out
        if keep is not None:
            out = jnp.where(keep[:, None, None, None], out, 0)
        return shortcut + out


def _activate(
    x: jax.Array, *, config: BatchNormNFNetConfig, is_training: bool, name: str
) -> jax.Array:
    """Normalizes, in a module called ``name``, and applies the nonlinearity."""
    activation = layers.unscaled_activation(config.activation)
    return activation(BatchNorm(config.sync_axis, name=name)(x, is_training))


def twin(config: NFNetConfig) -> BatchNormNFNetConfig:
    """Returns the batch-normalized twin of an NFNet."""
    own = [field.name for field in dataclasses.fields(BatchNormNFNetConfig)]
    shared = {name: getattr(config, name) for name in own if hasattr(config, name)}
    return BatchNormNFNetConfig(**shared)


VARIANTS: Mapping[str, BatchNormNFNetConfig] = MappingProxyType(
    {
        f"{name}_bn": twin(config)
        for name, config in nfnet.VARIANTS.items()
        if not name.endswith("_plus")
    }
)
