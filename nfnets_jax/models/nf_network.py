"""Normalizer-free networks: a stem, stages of residual blocks, a head.

The families are tables of variants of this one network, each in a file of its own: ``nf_resnet``
and ``nf_regnet`` (Brock et al. 2021a, arXiv:2101.08692) and ``nfnet`` (2021b, arXiv:2102.06171).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError, nearest
from nfnets_jax.kernels.convolution import in_loop
from nfnets_jax.kernels.loop import loop
from nfnets_jax.kernels.remat import recomputed
from nfnets_jax.models import layers
from nfnets_jax.models import prepare as stacking
from nfnets_jax.models.nf_block import BlockForm, BlockParameters, BlockWeights, NFBlock, nf_block
from nfnets_jax.models.prepare import LayerStack, stack_name

REMAT = ("none", "block", "full")


@dataclasses.dataclass(frozen=True)
class Family:
    """In what the networks of one family differ from another's.

    Attributes:
      name: of the network's module in the parameter tree.
      stem_name: of a convolution before the first stage, with ``{}`` where its number goes.
      stem_kernel: side of their kernels, in pixels.
      stem_pool: whether a maximum over 3x3 pixels halves the resolution before the first stage.
      block: the form of all blocks.
    """

    name: str
    stem_name: str
    stem_kernel: int
    stem_pool: bool
    block: BlockForm


@dataclasses.dataclass(frozen=True)
class NFNetworkConfig:
    """One variant of a family. A field a stage holds as many entries as there are stages.

    Attributes:
      family: what it shares with its relatives.
      width: output channels of each stage.
      depth: blocks of each stage.
      stem: (output channels, stride) of each convolution before the first stage.
      strides: of each stage's first block.
      train_size, test_size: published side of the square images, in pixels.
      dropout_rate: of the pooled features.
      stochastic_depth_rate: probability of dropping a block's branch, rising from 0 at the first
        block in proportion to the number of blocks before it.
      expansion: width of the bottleneck over the channels that the family counts it from.
      first_expansion: the same for the network's first block; None is no other than ``expansion``.
      group_size: channels a group of the 3x3 convolutions; None does not group them.
      se_ratio: hidden units of squeeze-excite over its channels; 0 leaves squeeze-excite out.
      final_expansion: channels of the last 1x1 convolution over the width of the last stage; 0
        leaves the convolution out.
      classifier_std: standard deviation that the classifier's matrix starts with; None is one over
        the root of the features.
      alpha: standard deviation that each block adds.
      activation: a key of ``layers.ACTIVATION_GAINS``.
      looped_blocks: from how many equal blocks in a row on they are compiled once, as a loop. It
        saves compilation: NFNet-F6's gradient took 19 s, and 85 s unrolled, on two CPU threads.
      remat: what is computed anew for the gradient instead of being kept: ``"none"`` but the
        activations and what scales a branch, each ``"block"`` from its input, or each stage in
        ``"full"``, block by block. README.md has the memory that each took.

    Raises:
      InputError: no such ``remat`` or ``activation``, or other numbers of stages.
    """

    family: Family
    width: tuple[int, ...]
    depth: tuple[int, ...]
    stem: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    train_size: int
    test_size: int
    expansion: float
    group_size: int | None
    se_ratio: float
    final_expansion: float
    activation: str
    first_expansion: float | None = None
    classifier_std: float | None = None
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    alpha: float = 0.2
    looped_blocks: int = 6
    remat: str = "none"

    def __post_init__(self) -> None:
        if self.remat not in REMAT:
            raise InputError(f"no remat {self.remat!r}; there are {', '.join(REMAT)}")
        if self.activation not in layers.ACTIVATION_GAINS:
            known = nearest(self.activation, layers.ACTIVATION_GAINS)
            raise InputError(f"no activation {self.activation!r}; {known}")
        stages = {name: len(getattr(self, name)) for name in ("width", "depth", "strides")}
        if len(set(stages.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in stages.items())
            raise InputError(f"each stage has one entry of width, depth and strides, not {counts}")


class StageWeights(NamedTuple):
    """Of a stage the first block and the rest, which are equal to each other.

    The rest is either a block each or, to be run as a loop, one whose arrays have a leading axis.
    """

    first: BlockWeights
    rest: tuple[BlockWeights, ...] | BlockWeights


class NetworkWeights(NamedTuple):
    """All arrays that the computation needs."""

    stem: tuple[layers.Affine, ...]
    stages: tuple[StageWeights, ...]
    final: layers.Affine | None
    classifier: layers.Affine


def layer_stacks(config: NFNetworkConfig) -> tuple[LayerStack, ...]:
    """The equal blocks that are run as loops, a stack a stage."""
    network, stacks = config.family.name, []
    for number, (_, *rest) in enumerate(_block_names(config), start=1):
        if _is_looped(rest, config):
            name = f"{network}/~/{stack_name(number)}/{config.family.block.name}"
            stacks.append(LayerStack(name, tuple(f"{network}/~/{block}" for block in rest)))
    return tuple(stacks)


def _is_looped(rest: Sequence[str], config: NFNetworkConfig) -> bool:
    """Whether a stage's blocks after the first are run as a loop."""
    return len(rest) >= max(1, config.looped_blocks)


def _block_names(config: NFNetworkConfig) -> list[list[str]]:
    """Of each stage's blocks, as Haiku would number them."""
    first = config.family.block.name
    names = itertools.chain([first], (f"{first}_{count}" for count in itertools.count(1)))
    return [list(itertools.islice(names, depth)) for depth in config.depth]


def network_weights(
    params: hk.Params, config: NFNetworkConfig, num_classes: int, dtype: jnp.dtype
) -> NetworkWeights:
    """What ``nf_network`` takes: kernels standardized, in ``dtype``; the classifier float32.

    Standardizing reads all parameters more than once, so it is done once a step, however many
    batches the step is made of. The parameters are in either form, published or stacked.
    """
    params = stacking.stacked(params, layer_stacks(config))
    first = params[f"{config.family.name}/~/{config.family.stem_name.format(0)}"]
    network = hk.transform(
        lambda: NFNetwork(config, num_classes, first["w"].shape[2], stacked=True).weights(dtype)
    )
    weights: NetworkWeights = network.apply(params, None)
    return weights


class NFNetwork(hk.Module):
    """The parameters of a normalizer-free network, named as the published ones.

    With ``stacked``, those of ``layer_stacks`` are read as ``stacking.stacked`` makes them, and
    can be read alone: parameters are made in the published form.
    """

    def __init__(
        self,
        config: NFNetworkConfig,
        num_classes: int,
        input_channels: int,
        stacked: bool = False,
    ):
        super().__init__(config.family.name)
        family = config.family
        channels = input_channels
        self._stem = []
        for index, (width, _) in enumerate(config.stem):
            name = family.stem_name.format(index)
            self._stem.append(layers.WSConv2D(channels, width, family.stem_kernel, name=name))
            channels = width
        self._stages: list[tuple[NFBlock, list[NFBlock] | _BlockStack]] = []
        stages = zip(config.width, config.strides, _block_names(config), strict=True)
        for number, (width, stride, (name, *rest)) in enumerate(stages, start=1):
            block = functools.partial(
                NFBlock,
                output_channels=width,
                form=family.block,
                group_size=config.group_size,
                se_ratio=config.se_ratio,
            )
            expansion = (number == 1 and config.first_expansion) or config.expansion
            first = block(channels, stride=stride, expansion=expansion, name=name)
            channels = width
            equal = functools.partial(block, channels, stride=1, expansion=config.expansion)
            if stacked and _is_looped(rest, config):
                self._stages.append((first, _BlockStack(equal, stack_name(number))))
            else:
                self._stages.append((first, [equal(name=name) for name in rest]))
        self._final_conv = None
        if config.final_expansion > 0:
            final_channels = int(config.final_expansion * channels)
            self._final_conv = layers.WSConv2D(channels, final_channels, 1, name="final_conv")
            channels = final_channels
        self._linear = layers.Linear(channels, num_classes, config.classifier_std, "linear")

    def weights(self, dtype: jnp.dtype) -> NetworkWeights:
        """What ``network_weights`` gives."""
        return NetworkWeights(
            stem=tuple(convolution.parameters().weights(dtype) for convolution in self._stem),
            stages=tuple(
                StageWeights(
                    first.parameters().weights(dtype),
                    rest.weights(dtype)
                    if isinstance(rest, _BlockStack)
                    else tuple(block.parameters().weights(dtype) for block in rest),
                )
                for first, rest in self._stages
            ),
            final=self._final_conv.parameters().weights(dtype) if self._final_conv else None,
            classifier=self._linear.parameters(),
        )


class _BlockStack:
    """Equal blocks, of whose parameters each has a leading axis that counts them."""

    def __init__(self, block: Callable[[], NFBlock], name: str):
        self._block = hk.transform(lambda: block().parameters())
        self._parameters = hk.lift(self._block.init, name=name)

    def weights(self, dtype: jnp.dtype) -> BlockWeights:
        """Theirs, with that axis."""

        def of_one(params: hk.Params) -> BlockWeights:
            block: BlockParameters = self._block.apply(params, None)
            return block.weights(dtype)

        return jax.vmap(of_one)(self._parameters(None))


def nf_network(
    weights: NetworkWeights,
    images: jax.Array,
    keys: jax.Array | None = None,
    *,
    config: NFNetworkConfig,
    features: bool = False,
    folded: bool = False,
) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      weights: of ``network_weights``; all but the classifier is computed in their dtype.
      images: ``[N, H, W, C]`` floats, normalized.
      keys: ``[N]`` random keys, one an example, for stochastic depth and dropout; None turns both
        off.
      config: the one that the weights were made by.
      features: also return the output of each stage.
      folded: whether the weights are those of ``models.folding``, with all constants in them.

    Returns:
      ``logits`` ``[N, num_classes]`` and ``pool`` ``[N, features]``, float32; with
      ``features`` also ``stage_1`` ... ``[N, h, w, width]`` in the compute dtype.
    """
    scaled = layers.scaled_activation(config.activation)
    activation = layers.unscaled_activation(config.activation) if folded else scaled
    x = images.astype(weights.stem[0].kernel.dtype)
    stem = zip(weights.stem, config.stem, strict=True)
    with jax.named_scope("stem"):
        for index, (convolution, (_, stride)) in enumerate(stem):
            if index == 0:
                x = layers.convolve(convolution, x, stride)
            else:
                x = layers.convolve_activated(convolution, x, activation, stride)
        if config.family.stem_pool:
            x = layers.max_pool(x)

    betas = None if folded else expected_betas(weights, config).astype(x.dtype)
    keep = layers.survivors(keys, config.stochastic_depth_rate, sum(config.depth))
    outputs, start = {}, 0
    stages = zip(weights.stages, config.depth, config.strides, strict=True)
    for number, (stage, depth, stride) in enumerate(stages, start=1):
        run: Callable[..., jax.Array] = functools.partial(
            _run_stage, stride=stride, config=config, activation=activation
        )
        if config.remat == "full":
            run = recomputed(run)
        with jax.named_scope(f"stage_{number}"):
            x = run(stage, x, *_at(slice(start, start + depth), betas, keep))
        start += depth
        if features:
            outputs[f"stage_{number}"] = x

    with jax.named_scope("head"):
        if weights.final is not None:
            x = layers.convolve(weights.final, x)
        pool = jnp.mean(scaled(x), axis=(1, 2), dtype=jnp.float32)
        seen = layers.dropout(keys, pool, config.dropout_rate)
        logits = layers.linear(weights.classifier, seen)
    return {**outputs, "pool": pool, "logits": logits}


def expected_betas(weights: NetworkWeights, config: NFNetworkConfig) -> np.ndarray:
    """``[blocks]``: one over the standard deviation of each block's input at initialization."""
    transitions = [
        index == 0 and stage.first.shortcut is not None
        for stage, depth in zip(weights.stages, config.depth, strict=True)
        for index in range(depth)
    ]
    return 1 / np.sqrt(expected_variances(transitions, config.alpha))


def expected_variances(transitions: Iterable[bool], alpha: float) -> list[float]:
    """Of the input of each block at initialization (NF-ResNets, section 3).

    ``transitions`` says of each block whether its shortcut starts from the activated input.
    """
    variances, variance = [], 1.0
    for transition in transitions:
        variances.append(variance)
        variance = (1.0 if transition else variance) + alpha**2
    return variances


def _run_stage(
    stage: StageWeights,
    x: jax.Array,
    betas: np.ndarray | None,
    keep: jax.Array | None,
    *,
    stride: int,
    config: NFNetworkConfig,
    activation: layers.Activation,
) -> jax.Array:
    """One block after the other; ``betas`` ``[depth]`` and ``keep`` ``[depth, N]`` are theirs."""

    def block(stride: int = 1, looped: bool = False) -> Callable[..., jax.Array]:
        run: Callable[..., jax.Array] = functools.partial(
            nf_block,
            form=config.family.block,
            activation=activation,
            alpha=config.alpha,
            stride=stride,
        )
        if looped:
            run = in_loop()(run)
        return run if config.remat == "none" else recomputed(run)

    x = block(stride)(stage.first, x, *_at(0, betas, keep))
    if isinstance(stage.rest, BlockWeights):
        x = loop(block(looped=True), stage.rest, x, _at(slice(1, None), betas, keep))
    else:
        for index, weights in enumerate(stage.rest, start=1):
            x = block()(weights, x, *_at(index, betas, keep))
    return x


def _at(place: int | slice, *arrays: Any) -> tuple[Any, ...]:
    """The entries of arrays of one a block; of None, None."""
    return jax.tree.map(lambda array: array[place], arrays)
