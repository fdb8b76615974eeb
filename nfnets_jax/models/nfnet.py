"""NFNets, and the one definition that every normalizer-free network here is made of.

"NF-ResNets" below is Brock et al. 2021a, arXiv:2101.08692; "NFNets" is Brock et al. 2021b,
arXiv:2102.06171. NF-ResNets and NF-RegNets are the same network under other options.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError, nearest
from nfnets_jax.kernels.convolution import Policy, conv2d
from nfnets_jax.kernels.dilated import dilated_conv2d
from nfnets_jax.kernels.remat import convolution_output
from nfnets_jax.models import layers
from nfnets_jax.models.initialization import Normal
from nfnets_jax.models.output_stride import NO_DILATION, Dilation, stage_dilations
from nfnets_jax.models.prepare import LayerStack, stack_name
from nfnets_jax.models.stage import REMAT, Stage
from nfnets_jax.ranges import PROBABILITY, SHARE, Range, check_ranges


class WSConv2D(hk.Module):
    """Convolution with scaled weight standardization (NF-ResNets, section 4.2), ``SAME`` padding.

    Parameters, float32: ``w`` ``[k, k, I / groups, O]``, ``gain`` ``[O]`` and ``bias`` ``[O]``.
    With ``prepared`` parameters ``w`` is standardized already, in any dtype, and there is no gain.
    A ``dilation`` above 1 goes with a stride of 1.
    Without ``standardized`` there is neither gain nor standardization: ``w`` itself convolves.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        *,
        dilation: int = 1,
        policy: Policy | None = None,
        prepared: bool = False,
        standardized: bool = True,
        name: str | None = None,
    ):
        super().__init__(name)
        self._channels = channels
        self._kernel_size = kernel_size
        self._stride = stride
        self._groups = groups
        self._dilation = dilation
        self._policy = policy
        self._standardizes = standardized and not prepared

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, H, W, I]`` to ``[N, ceil(H / stride), ceil(W / stride), O]``, in its dtype."""
        size, channels = self._kernel_size, self._channels
        shape = (size, size, x.shape[-1] // self._groups, channels)
        w = hk.get_parameter("w", shape, init=Normal(math.prod(shape[:-1]) ** -0.5))
        if self._standardizes:
            w = layers.standardize(w, hk.get_parameter("gain", (channels,), init=jnp.ones))
        bias = hk.get_parameter("bias", (channels,), init=jnp.zeros)
        w = w.astype(x.dtype)
        if self._dilation > 1:
            out = dilated_conv2d(x, w, self._dilation, self._policy)
        else:
            out = conv2d(x, w, self._stride, self._policy)
        return convolution_output(out + bias.astype(x.dtype))


class SqueezeExcite(hk.Module):
    """Two layers that scale channels by what all pixels hold (Hu et al. 2018, arXiv:1709.01507).

    Their matrices start as Haiku's do, and are not standardized (NFNets, appendix C).
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        activation: layers.Activation = jax.nn.relu,
        name: str | None = None,
    ):
        super().__init__(name)
        self._squeeze = layers.Linear(hidden, name="linear")
        self._excite = layers.Linear(channels, name="linear_1")
        self._activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the channels' factors ``[N, 1, 1, C]``, 0 to 1, for ``x`` ``[N, H, W, C]``."""
        hidden = self._activation(self._squeeze(jnp.mean(x, axis=(1, 2))))
        return jax.nn.sigmoid(self._excite(hidden))[:, None, None, :]


class NFBlock(hk.Module):
    """The normalizer-free bottleneck block (NF-ResNets, section 3; NFNets, section 5).

    It computes ``shortcut(x) + alpha * skip_gain * branch(activation(x) * beta)``. ``beta`` is one
    over the standard deviation that ``x`` has at initialization. ``skip_gain`` is a scalar that
    starts at zero, so that the network starts as its shortcuts (SkipInit, De and Smith 2020,
    arXiv:2002.10444). A transition block, which changes the resolution or the number of channels,
    has a 1x1 convolution on its shortcut.

    Args:
      config: the network's options.
      in_channels, out_channels: of ``x`` and of the result.
      stride: of the first 3x3 convolution; 2 halves the resolution.
      expansion: width of the bottleneck over the channels that the family counts it from.
      dilation: of the 3x3 convolutions; where it replaces the stride, the resolution stays.
      conv: makes a ``WSConv2D``.
      activation: the config's, scaled to unit variance, if None. Weights that hold the gain need
        the unscaled one.
    """

    def __init__(
        self,
        config: "NFNetConfig",
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expansion: float = 0.5,
        *,
        dilation: Dilation = NO_DILATION,
        conv: Callable[..., WSConv2D] = WSConv2D,
        activation: layers.Activation | None = None,
        name: str | None = None,
    ):
        super().__init__(name)
        self._config = config
        self._activation = activation or layers.scaled_activation(config.activation)
        width, groups = bottleneck(config, in_channels, out_channels, expansion)
        self._width, self._groups = width, groups  # For blocks that derive from this one.
        changes_input = stride > 1 or in_channels != out_channels
        self._pool = None
        if stride > 1 and config.pools_shortcut:
            self._pool = layers.average_pool
            if dilation.replaces_stride:
                self._pool = functools.partial(layers.sliding_average, spacing=dilation.entry)
        if dilation.replaces_stride:
            stride = 1
        self._conv0 = conv(width, 1, name="conv0")
        spatial = functools.partial(conv, width, 3, standardized=config.standardizes_spatial)
        first, *others = config.spatial
        self._spatial = [
            spatial(stride, groups, name=first, dilation=dilation.entry),
            *(spatial(1, groups, name=name, dilation=dilation.rest) for name in others),
        ]
        self._conv2 = conv(out_channels, 1, name="conv2")
        self._squeeze_excite = None
        if config.se_ratio > 0:
            excited = width if config.excites_bottleneck else out_channels
            hidden = max(1, int(excited * config.se_ratio))
            self._squeeze_excite = SqueezeExcite(excited, hidden, name="squeeze_excite")
        self._conv_shortcut = None
        if changes_input:
            shortcut_stride = 1 if self._pool else stride
            self._conv_shortcut = conv(out_channels, 1, shortcut_stride, name="conv_shortcut")

    def __call__(
        self, x: jax.Array, beta: float | jax.Array | None = 1.0, keep: jax.Array | None = None
    ) -> jax.Array:
        """Applies the block.

        Args:
          x: ``[N, H, W, in_channels]``.
          beta: one over the expected standard deviation of ``x``; None if the weights hold it.
          keep: ``[N]`` booleans, whether stochastic depth keeps an example's branch; None keeps
            all. A kept branch is not scaled up, as published.

        Returns:
          ``[N, ceil(H / stride), ceil(W / stride), out_channels]``.
        """
        config = self._config
        out = self._activation(x) if beta is None else self._activation(x) * beta

        shortcut = x
        if self._conv_shortcut is not None:
            shortcut = self._conv_shortcut(self._pool(out) if self._pool else out)

        out = self.branch(out)

        # All factors of the branch are multiplied first, so that the branch is read once.
        skip_gain = hk.get_parameter("skip_gain", (), init=jnp.zeros)
        scale = (config.alpha * skip_gain.astype(x.dtype)).reshape(1, 1, 1, 1)
        if self._squeeze_excite is not None and not config.excites_bottleneck:
            # Squeeze-excite's mean is one half (NF-ResNets, section 4.4).
            scale = scale * 2 * self._squeeze_excite(out)
        if keep is not None:
            scale = jnp.where(keep[:, None, None, None], scale, 0)
        return shortcut + scale * out

    def branch(self, x: jax.Array) -> jax.Array:
        """Applies the bottleneck to the activated and scaled input: 1x1, 3x3, 3x3, 1x1."""
        x = self._conv0(x)
        for conv in self._spatial:
            x = conv(self._activation(x))
        if self._squeeze_excite is not None and self._config.excites_bottleneck:
            x = x * 2 * self._squeeze_excite(x)
        return self._conv2(self._activation(x))


def bottleneck(
    config: Any, in_channels: int, out_channels: int, expansion: float
) -> tuple[int, int]:
    """Returns the width of a block's 3x3 convolutions, and the number of their groups.

    Args:
      config: has ``expands_input`` and ``group_size``, as ``NFNetConfig`` says.
      in_channels, out_channels: of the block.
      expansion: the width over the channels that the family counts it from; the width is rounded
        down to whole groups, of which there is at least one.
    """
    width = int((in_channels if config.expands_input else out_channels) * expansion)
    if config.group_size is None:
        return width, 1
    groups = max(1, width // config.group_size)
    return groups * config.group_size, groups


_COUNT = Range(1, 2**20, whole=True)
# Of the fields of ``NFNetConfig``.
_RANGES = {
    "width": _COUNT,
    "depth": Range(1, 10**4, whole=True),
    "strides": Range(1, 64, whole=True),
    "train_size": _COUNT,
    "test_size": _COUNT,
    "dropout_rate": PROBABILITY,
    "stochastic_depth_rate": SHARE,
    "expansion": Range(0, 1024, above=True),
    "first_expansion": Range(0, 1024, above=True),
    "group_size": _COUNT,
    "se_ratio": Range(0, 1024),
    "final_expansion": Range(0, 1024),
    "classifier_std": Range(0, 10**6),
    "alpha": Range(0, 10**6),
    "stem_kernel": Range(1, 64, whole=True),
    "looped_blocks": Range(0, 10**9, whole=True),
    "output_stride": _COUNT,
}


def check_stages(config: Any) -> None:
    """Checks that width, depth and strides are of equally many stages.

    Raises:
      InputError: they are not.
    """
    stages = {name: len(getattr(config, name)) for name in ("width", "depth", "strides")}
    if len(set(stages.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in stages.items())
        raise InputError(f"each stage has one entry of width, depth and strides, not {counts}")


@dataclasses.dataclass(frozen=True)
class NFNetConfig:
    """The options of a normalizer-free network. Fields of a stage have one entry a stage.

    Attributes:
      width: output channels of each stage.
      depth: blocks of each stage.
      stem: (output channels, stride) of each convolution before the first stage.
      strides: of each stage's first block.
      train_size, test_size: published side of the square images, in pixels.
      test_crop: how images are cropped for evaluation, as published.
      dropout_rate: of the pooled features.
      stochastic_depth_rate: probability of dropping a block's branch; it rises from 0 at the first
        block in proportion to the number of blocks before it.
      expansion: width of the bottleneck over the block's output channels, or its input channels
        with ``expands_input``.
      first_expansion: the same for the network's first block; None for ``expansion``.
      group_size: channels in a group of the 3x3 convolutions; None does not group them, and 1
        makes them depthwise.
      standardizes_spatial: whether the kernels of the 3x3 convolutions are standardized, too. One
        of depthwise convolutions has only nine weights to standardize.
      se_ratio: hidden units of squeeze-excite over its channels; 0 leaves squeeze-excite out.
      final_expansion: channels of the last 1x1 convolution over the width of the last stage; 0
        leaves the convolution out.
      classifier_std: standard deviation of the classifier's initial matrix; 0 starts it at zero,
        None as ``layers.Linear`` does.
      alpha: standard deviation that each block adds.
      activation: a key of ``layers.ACTIVATION_GAINS``.
      name, stem_name, block_name: of the modules in the parameter tree; ``stem_name`` has ``{}``
        for the number of the convolution.
      stem_kernel: side of the stem's kernels, in pixels.
      stem_pool: whether a maximum over 3x3 pixels halves the resolution after the stem.
      spatial: names of a block's 3x3 convolutions.
      expands_input: whether ``expansion`` counts from the block's input channels.
      excites_bottleneck: whether squeeze-excite scales the output of the 3x3 convolutions, and not
        that of the branch.
      pools_shortcut: whether a shortcut that halves the resolution takes the mean of 2x2 pixels,
        and not one of the four.
      block: the class of the blocks, with the arguments of ``NFBlock``.
      looped_blocks: smallest number of equal blocks in a row that are compiled once, as a loop,
        except on a GPU. It saves compilation: NFNet-F6's gradient took 19 s, and 85 s unrolled, on
        two CPU threads.
      remat: what the backward pass recomputes: ``"none"`` what is faster recomputed than kept,
        ``"block"`` each block from its input, ``"full"`` each stage from its input, then each
        block. docs/speed.md has the memory of each.
      output_stride: the largest stride of a stage over the image; later stages keep the resolution
        and dilate their convolutions. None keeps all strides.

    Raises:
      InputError: no such ``remat`` or ``activation``, numbers out of their ranges, or of stages
        that differ.
    """

    width: tuple[int, ...]
    depth: tuple[int, ...]
    stem: tuple[tuple[int, int], ...]
    train_size: int
    test_size: int
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    expansion: float = 0.5
    first_expansion: float | None = None
    group_size: int | None = 128
    se_ratio: float = 0.5
    final_expansion: float = 2.0
    classifier_std: float | None = 0.01
    alpha: float = 0.2
    activation: str = "gelu"
    name: str = "NFNet"
    stem_name: str = "stem_conv{}"
    block_name: str = "nf_block"
    stem_kernel: int = 3
    stem_pool: bool = False
    spatial: tuple[str, ...] = ("conv1", "conv1b")
    expands_input: bool = False
    excites_bottleneck: bool = False
    pools_shortcut: bool = True
    standardizes_spatial: bool = True
    block: Callable[..., hk.Module] = NFBlock
    looped_blocks: int = 6
    remat: str = "none"
    test_crop: str = "squash"
    output_stride: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.remat not in REMAT:
            raise InputError(f"no remat {self.remat!r}; there are {', '.join(REMAT)}")
        if self.activation not in layers.ACTIVATION_GAINS:
            known = nearest(self.activation, layers.ACTIVATION_GAINS)
            raise InputError(f"no activation {self.activation!r}; {known}")
        check_stages(self)
        _ = self.dilations  # It refuses an output stride that cannot be.

    def network(self, num_classes: int, policy: Policy, prepared: bool) -> "NFNet":
        """Makes the module, inside a ``hk.transform``."""
        return NFNet(self, num_classes, policy, prepared)

    @property
    def classifier(self) -> str:
        """Full name of the classifier's module."""
        return f"{self.name}/~/linear"

    @property
    def first_conv(self) -> str:
        """Full name of the first convolution's module."""
        return f"{self.name}/~/{self.stem_name.format(0)}"

    @property
    def block_names(self) -> list[list[str]]:
        """Names of the blocks' modules below the network's, a list a stage."""
        first = self.block_name
        names = itertools.chain([first], (f"{first}_{count}" for count in itertools.count(1)))
        return [list(itertools.islice(names, depth)) for depth in self.depth]

    @property
    def layer_stacks(self) -> tuple[LayerStack, ...]:
        """The equal blocks that are compiled as a loop, a stack a stage."""
        stacks = []
        for number, (_, *rest) in enumerate(self.block_names, start=1):
            if self.is_looped(len(rest)):
                name = f"{self.name}/~/{stack_name(number)}/{self.block_name}"
                stacks.append(LayerStack(name, tuple(f"{self.name}/~/{block}" for block in rest)))
        return tuple(stacks)

    def is_looped(self, equal_blocks: int) -> bool:
        """Returns whether this number of equal blocks in a row is compiled as a loop."""
        return equal_blocks >= max(1, self.looped_blocks)

    @property
    def dilations(self) -> tuple[Dilation, ...]:
        """How each stage keeps to ``output_stride``."""
        stem_stride = math.prod(stride for _, stride in self.stem) * (2 if self.stem_pool else 1)
        return stage_dilations(stem_stride, self.strides, self.output_stride)

    @property
    def betas(self) -> np.ndarray:
        """One over the standard deviation of each block's input at initialization, ``[blocks]``.

        A block adds ``alpha**2`` to the variance of its input. The shortcut of a transition block
        starts from the normalized input, of variance one (NF-ResNets, section 3).
        """
        channels, variance, betas = self.stem[-1][0], 1.0, []
        for width, depth, stride in zip(self.width, self.depth, self.strides, strict=True):
            for index in range(depth):
                betas.append(variance**-0.5)
                is_transition = index == 0 and (stride > 1 or width != channels)
                variance = (1.0 if is_transition else variance) + self.alpha**2
            channels = width
        return np.array(betas)


class NFNet(hk.Module):
    """A normalizer-free network: a stem, stages of residual blocks, a head.

    Parameters are named as in the published Haiku files. They have one of two forms. In the
    published form every convolution standardizes its kernel and every block runs by itself: the
    definition, for ``init``. With ``prepared``, they are what ``models.prepare`` makes of it.

    Args:
      config: the options.
      num_classes: length of the logits; 0 leaves them and the classifier out.
      policy: how convolutions are computed.
      prepared: whether the parameters are prepared.
      folded: whether the prepared parameters hold the constants too (``serving.folding``).
    """

    def __init__(
        self,
        config: NFNetConfig,
        num_classes: int,
        policy: Policy | None = None,
        prepared: bool = False,
        folded: bool = False,
    ):
        super().__init__(config.name)
        self._config = config
        self._num_classes = num_classes
        self._folded = folded
        policy = policy or Policy()
        self._scaled = layers.scaled_activation(config.activation)
        self._activation = layers.unscaled_activation(config.activation) if folded else self._scaled
        conv = functools.partial(WSConv2D, policy=policy, prepared=prepared)
        in_loop = functools.partial(conv, policy=dataclasses.replace(policy, in_loop=True))

        self._stem = [
            conv(channels, config.stem_kernel, stride, name=config.stem_name.format(index))
            for index, (channels, stride) in enumerate(config.stem)
        ]
        self._stages = []
        channels = config.stem[-1][0]
        stages = zip(
            config.width, config.strides, config.dilations, config.block_names, strict=True
        )
        for number, (width, stride, dilation, names) in enumerate(stages, start=1):
            stack = f"{stack_name(number)}/{config.block_name}"
            looped = prepared and _holds(stack)
            block = equal = functools.partial(config.block, config, activation=self._activation)
            if config.output_stride is not None:
                block = functools.partial(block, dilation=dilation)
                equal = functools.partial(equal, dilation=dilation.inside)
            expansion = config.first_expansion if number == 1 else None
            self._stages.append(
                Stage(
                    functools.partial(
                        block, channels, width, stride, expansion or config.expansion, conv=conv
                    ),
                    functools.partial(
                        equal, width, width, 1, config.expansion, conv=in_loop if looped else conv
                    ),
                    names,
                    network=config.name,
                    stack=stack if looped else None,
                    prepared=prepared,
                    remat=config.remat,
                    policy=policy,
                )
            )
            channels = width
        self._final_conv = None
        if config.final_expansion > 0:
            self._final_conv = conv(int(config.final_expansion * channels), 1, name="final_conv")
        self._linear = layers.Linear(num_classes, config.classifier_std, name="linear")

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
          is_training: makes no difference; other families need it.
          features: also return the output of each stage.

        Returns:
          ``pool`` ``[N, features]`` and, unless ``num_classes`` is 0, ``logits``
          ``[N, num_classes]``, float32; with ``features`` also ``stage_1`` ...
          ``[N, h, w, width]`` in the dtype of ``images``.
        """
        del is_training
        config, outputs = self._config, {}
        with jax.named_scope("stem"):
            x = self._stem[0](images)
            for conv in self._stem[1:]:
                x = conv(self._activation(x))
            if config.stem_pool:
                x = layers.max_pool(x)

        betas = None if self._folded else config.betas.astype(x.dtype)
        keep = layers.kept_branches(keys, config.stochastic_depth_rate, sum(config.depth))
        start = 0
        for number, (stage, depth) in enumerate(
            zip(self._stages, config.depth, strict=True), start=1
        ):
            here = slice(start, start + depth)
            with jax.named_scope(f"stage_{number}"):
                x = stage(x, *(None if each is None else each[here] for each in (betas, keep)))
            start += depth
            if features:
                outputs[f"stage_{number}"] = x

        with jax.named_scope("head"):
            if self._final_conv is not None:
                x = self._final_conv(x)
            outputs["pool"] = pool = jnp.mean(self._scaled(x), axis=(1, 2), dtype=jnp.float32)
            if self._num_classes:
                outputs["logits"] = self._linear(layers.dropout(keys, pool, config.dropout_rate))
        return outputs


def _holds(module: str) -> bool:
    """Returns whether there are parameters of a module of the network, or of one below it."""
    return any(f"/{module}/" in f"{name}/" for name in hk.get_params())


def _imagenet(
    scale: int, train_size: int, test_size: int, dropout_rate: float, wide: bool
) -> NFNetConfig:
    """Returns F``scale - 1``: the blocks of F0 times ``scale`` (NFNets, table 1 and appendix)."""
    width = (384, 768, 2048, 2048) if wide else (256, 512, 1536, 1536)
    return NFNetConfig(
        width=width,
        depth=(scale, 2 * scale, 6 * scale, 3 * scale),
        stem=((16, 2), (32, 1), (64, 1), (width[0] // 2, 2)),
        train_size=train_size,
        test_size=test_size,
        dropout_rate=dropout_rate,
        stochastic_depth_rate=0.25,
    )


# F0 to F7: training size, test size, dropout rate.
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
        # For small images: the stem keeps the resolution.
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
            train_size=32,
            test_size=32,
            group_size=32,
        ),
    }
)
