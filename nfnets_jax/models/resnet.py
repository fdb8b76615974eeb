"""ResNets with batch normalization, which normalizer-free networks are measured against.

ResNet (He et al. 2016, arXiv:1512.03385, with the stride in the 3x3 convolution), ResNeXt (Xie et
al. 2017, arXiv:1611.05431), squeeze-excite (Hu et al. 2018, arXiv:1709.01507) and the "D" variant
(He et al. 2019, arXiv:1812.01187). NFNets were derived from SE-ResNeXt-D.

For ablations there are the same networks with SkipInit (De and Smith 2020, arXiv:2002.10444,
section 4), with Fixup (Zhang et al. 2019, arXiv:1901.09321, section 3), or with nothing in place of
batch normalization.
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
from nfnets_jax.models import layers
from nfnets_jax.models.batch_norm import BatchNorm, Conv2D
from nfnets_jax.models.nfnet import SqueezeExcite
from nfnets_jax.models.output_stride import Dilation, stage_dilations
from nfnets_jax.models.prepare import LayerStack
from nfnets_jax.ranges import PROBABILITY, SHARE, Range, check_ranges

_REMAT = ("none", "block")
_NORMALIZATIONS = ("batch", "skipinit", "fixup", "none")


_COUNT = Range(1, 2**20, whole=True)
_RANGES = {
    "depth": Range(1, 10**4, whole=True),
    "width": _COUNT,
    "groups": _COUNT,
    "group_width": _COUNT,
    "se_ratio": Range(0, 1024),
    "train_size": _COUNT,
    "test_size": _COUNT,
    "dropout_rate": PROBABILITY,
    "stochastic_depth_rate": SHARE,
    "output_stride": _COUNT,
}


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The options of a ResNet. Fields of a stage have one entry a stage.

    Attributes:
      depth: blocks of each stage.
      width: output channels of each stage.
      groups: of the 3x3 convolutions.
      group_width: channels in a group of the first stage; they grow with the width.
      form_d: whether the stem is three 3x3 convolutions and a shortcut that halves the resolution
        takes the mean of 2x2 pixels; else the stem is one of 7x7, and it takes one of the four.
      small_images: whether the stem is one 3x3 convolution that keeps the resolution.
      se_ratio: hidden units of squeeze-excite over its channels; 0 leaves squeeze-excite out.
      train_size, test_size: published side of the square images, in pixels.
      test_crop: how images are cropped for evaluation, as published.
      dropout_rate: of the pooled features.
      stochastic_depth_rate: probability of dropping a block's branch; it rises from 0 at the first
        block in proportion to the number of blocks before it.
      normalization: ``"batch"``; ``"skipinit"`` ends each branch in a learned factor that starts at
        zero; ``"fixup"`` scales the initial kernels down and adds scalar biases and a factor a
        branch; ``"none"`` does neither.
      sync_axis: the axis of a ``jax.pmap`` over whose devices batches are normalized together,
        ``"devices"`` in the training step here; empty normalizes on each device alone.
      remat: ``"block"`` rematerializes each block from its input in the backward pass; ``"none"``
        keeps all residuals.
      output_stride: the largest stride of a stage over the image; later stages keep the resolution
        and dilate their convolutions. None keeps all strides.

    Raises:
      InputError: no such ``remat`` or ``normalization``, or numbers out of their ranges.
    """

    depth: tuple[int, ...]
    width: tuple[int, ...] = (256, 512, 1024, 2048)
    groups: int = 1
    group_width: int = 64
    form_d: bool = False
    small_images: bool = False
    se_ratio: float = 0.0
    train_size: int = 224
    test_size: int = 224
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    normalization: str = "batch"
    sync_axis: str = ""
    remat: str = "none"
    test_crop: str = "padded"
    output_stride: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.remat not in _REMAT:
            raise InputError(f"no remat {self.remat!r}; there are {', '.join(_REMAT)}")
        if self.normalization not in _NORMALIZATIONS:
            known = ", ".join(_NORMALIZATIONS)
            raise InputError(f"no normalization {self.normalization!r}; there are {known}")
        _ = self.dilations  # It refuses an output stride that cannot be.

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the stages' first blocks."""
        return tuple(1 if stage == 0 else 2 for stage in range(len(self.depth)))

    @property
    def dilations(self) -> tuple[Dilation, ...]:
        """How each stage keeps to ``output_stride``."""
        stem_stride = 1 if self.small_images else 4
        return stage_dilations(stem_stride, self.strides, self.output_stride)

    @property
    def classifier(self) -> str:
        """Full name of the classifier's module."""
        return "ResNet/linear"

    @property
    def first_conv(self) -> str:
        """Full name of the first convolution's module."""
        return "ResNet/~_stem/stem_conv0"

    @property
    def layer_stacks(self) -> tuple[LayerStack, ...]:
        """None: every block has arrays of its own."""
        return ()

    def network(self, num_classes: int, policy: Policy, prepared: bool) -> "ResNet":
        """Makes the module, inside a ``hk.transform``; prepared parameters are the same."""
        del prepared
        return ResNet(self, num_classes, policy)


_SE = 1 / 16

# A quarter as wide, for 32 pixels.
_SMALL = ResNetConfig(
    (2, 2, 2, 2),
    width=(64, 128, 256, 512),
    group_width=16,
    small_images=True,
    train_size=32,
    test_size=32,
)
_BATCH_NORMALIZED = {
    "resnet50": ResNetConfig((3, 4, 6, 3)),
    "resnet101": ResNetConfig((3, 4, 23, 3)),
    "resnet152": ResNetConfig((3, 8, 36, 3)),
    "resnet200": ResNetConfig((3, 24, 36, 3)),
    "resnet26_small": _SMALL,
    "seresnext26d_small": dataclasses.replace(
        _SMALL, groups=4, group_width=8, form_d=True, se_ratio=_SE
    ),
    "resnet50d": ResNetConfig((3, 4, 6, 3), form_d=True),
    "seresnet50": ResNetConfig((3, 4, 6, 3), se_ratio=_SE),
    "seresnext50_32x4d": ResNetConfig((3, 4, 6, 3), groups=32, group_width=4, se_ratio=_SE),
    "seresnext26d_32x4d": ResNetConfig(
        (2, 2, 2, 2), groups=32, group_width=4, form_d=True, se_ratio=_SE
    ),
    "seresnext50d_32x4d": ResNetConfig(
        (3, 4, 6, 3), groups=32, group_width=4, form_d=True, se_ratio=_SE
    ),
    "seresnext101d_32x8d": ResNetConfig(
        (3, 4, 23, 3), groups=32, group_width=8, form_d=True, se_ratio=_SE
    ),
}

VARIANTS: Mapping[str, ResNetConfig] = MappingProxyType(
    {
        **_BATCH_NORMALIZED,
        **{
            f"{prefix}_{name}": dataclasses.replace(
                _BATCH_NORMALIZED[name], normalization=normalization
            )
            for prefix, normalization in (
                ("skipinit", "skipinit"),
                ("fixup", "fixup"),
                ("unnormalized", "none"),
            )
            for name in ("resnet26_small", "resnet50")
        },
    }
)


class ResNet(hk.Module):
    """A ResNet; ``config`` and ``policy`` are the options, and how convolutions are computed."""

    def __init__(self, config: ResNetConfig, num_classes: int, policy: Policy | None = None):
        super().__init__("ResNet")
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
        with jax.named_scope("stem"):
            x = self._stem(images, is_training)
            if not config.small_images:
                x = layers.max_pool(x)
        keep = layers.kept_branches(keys, config.stochastic_depth_rate, sum(config.depth))
        index = 0
        stages = zip(config.width, config.depth, config.strides, config.dilations, strict=True)
        for number, (width, depth, first_stride, dilation) in enumerate(stages, start=1):
            with jax.named_scope(f"stage_{number}"):
                for place in range(depth):
                    stride = first_stride if place == 0 else 1
                    here = dilation if place == 0 else dilation.inside
                    block = _Block(config, width, stride, here, self._policy)
                    run = functools.partial(block, is_training=is_training)
                    if config.remat == "block":
                        run = hk.remat(run)
                    x = run(x, None if keep is None else keep[index])
                    index += 1
            if features:
                outputs[f"stage_{number}"] = x
        with jax.named_scope("head"):
            outputs["pool"] = pool = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
            fixup = config.normalization == "fixup"
            # Without a classifier too, so that the classifier is one module in every network.
            inputs = _Bias(name="bias")(pool) if fixup else pool
            if self._num_classes:
                linear = layers.Linear(self._num_classes, 0.0 if fixup else 0.01, name="linear")
                outputs["logits"] = linear(layers.dropout(keys, inputs, config.dropout_rate))
        return outputs

    def _stem(self, x: jax.Array, is_training: bool) -> jax.Array:
        convolutions: tuple[tuple[int, int, int], ...] = ((64, 7, 2),)
        if self._config.small_images:
            convolutions = ((self._config.width[0], 3, 1),)
        elif self._config.form_d:
            convolutions = ((32, 3, 2), (32, 3, 1), (64, 3, 1))
        for index, (channels, kernel, stride) in enumerate(convolutions):
            name = f"stem_conv{index}"
            convolution = Conv2D(channels, kernel, stride, policy=self._policy, name=name)
            x = _convolve(self._config, convolution, x, is_training, f"stem_norm{index}")
            x = jax.nn.relu(x)
        return x


class _Block(hk.Module):
    """A bottleneck of 1x1, grouped 3x3 and 1x1 convolutions, added to a shortcut.

    Its last scale starts at zero, so that the network starts as its shortcuts (Goyal et al. 2017,
    arXiv:1706.02677, section 5.1). So do SkipInit's gain and the last kernel of Fixup.
    """

    def __init__(
        self,
        config: ResNetConfig,
        width: int,
        stride: int,
        dilation: Dilation,
        policy: Policy | None,
    ):
        super().__init__("block")
        self._dilation = dilation
        self._conv = functools.partial(Conv2D, policy=policy)
        self._config = config
        self._width = width
        self._stride = stride

    def __call__(self, x: jax.Array, keep: jax.Array | None, is_training: bool) -> jax.Array:
        """Maps ``[N, H, W, I]`` to ``[N, ceil(H / stride), ceil(W / stride), width]``.

        ``keep`` ``[N]`` is whether stochastic depth keeps an example's branch; None keeps all.
        """
        config, width, stride = self._config, self._width, self._stride
        convolve = functools.partial(_convolve, config, is_training=is_training)
        inner = config.groups * config.group_width * width // config.width[0]
        gain = last_gain = 1.0
        if config.normalization == "fixup":
            # L branches of m = 3 layers each: the first ones by L ** (-1 / (2m - 2)), the last 0.
            gain, last_gain = sum(config.depth) ** -0.25, 0.0
        shortcut = x
        changes_input, pools = stride > 1 or x.shape[-1] != width, config.form_d and stride > 1
        keeps = self._dilation.replaces_stride
        stride = 1 if keeps else stride
        if changes_input:
            if pools:
                spacing = self._dilation.entry
                shortcut = layers.sliding_average(x, spacing) if keeps else layers.average_pool(x)
            convolution = self._conv(width, 1, 1 if pools else stride, name="conv_shortcut")
            shortcut = convolve(convolution, shortcut, norm="norm_shortcut")
        reduce = self._conv(inner, 1, gain=gain, name="conv0")
        branch = jax.nn.relu(convolve(reduce, x, norm="norm0"))
        dilation = self._dilation.entry
        spatial = self._conv(
            inner, 3, stride, config.groups, dilation=dilation, gain=gain, name="conv1"
        )
        branch = jax.nn.relu(convolve(spatial, branch, norm="norm1"))
        expand = self._conv(width, 1, gain=last_gain, name="conv2")
        branch = convolve(expand, branch, norm="norm2", ends_branch=True)
        if config.se_ratio > 0:
            hidden = max(1, int(width * config.se_ratio))
            branch *= SqueezeExcite(width, hidden, name="squeeze_excite")(branch)
        if keep is not None:
            branch = jnp.where(keep[:, None, None, None], branch, 0)
        return jax.nn.relu(shortcut + branch)


def _convolve(
    config: ResNetConfig,
    convolution: Conv2D,
    x: jax.Array,
    is_training: bool,
    norm: str,
    ends_branch: bool = False,
) -> jax.Array:
    """Convolves and normalizes by ``config.normalization``, in a module called ``norm``."""
    if config.normalization == "batch":
        initial_scale = 0.0 if ends_branch else 1.0
        batch_norm = BatchNorm(config.sync_axis, initial_scale=initial_scale, name=norm)
        return batch_norm(convolution(x), is_training)
    if config.normalization == "fixup":
        x = convolution(_Bias(name=f"{norm}_before")(x))
        if ends_branch:
            x = _Gain(1.0, name=f"{norm}_gain")(x)
        return _Bias(name=norm)(x)
    x = convolution(x)
    x = _Bias(x.shape[-1:], name=norm)(x)
    if ends_branch and config.normalization == "skipinit":
        x = _Gain(0.0, name=f"{norm}_gain")(x)
    return x


class _Bias(hk.Module):
    """Adds ``bias``, a scalar or one a channel, which starts at zero."""

    def __init__(self, shape: tuple[int, ...] = (), *, name: str):
        super().__init__(name)
        self._shape = shape

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + hk.get_parameter("bias", self._shape, init=jnp.zeros).astype(x.dtype)


class _Gain(hk.Module):
    """Multiplies by ``gain``, a scalar."""

    def __init__(self, initial: float, *, name: str):
        super().__init__(name)
        self._initial = initial

    def __call__(self, x: jax.Array) -> jax.Array:
        initial = hk.initializers.Constant(self._initial)
        return x * hk.get_parameter("gain", (), init=initial).astype(x.dtype)
