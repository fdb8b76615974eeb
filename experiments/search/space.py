"""The design space: which normalizer-free networks the search draws from.

A design is a network without its size. Its widths follow the rule of RegNets (Radosavovic et al.
2020, arXiv:2003.13678, section 3.3): a line of widths, one a block, is rounded to powers of a ratio
times the first width, and equal widths in a row are a stage. The slope of the line is counted in
first widths, so that the first width alone scales the network; ``cost.widest`` finds it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nfnets_jax.models.nfnet import NFNetConfig

# Possible values of each dimension, by the names of the fields of ``Design``.
Space = Mapping[str, tuple[Any, ...]]

UNGROUPED, DEPTHWISE, DEPTHWISE_PLAIN = "none", "depthwise", "depthwise, not standardized"
SPACE: Space = {
    "depth": tuple(range(6, 19)),
    "slope": (0.25, 0.5, 1.0, 2.0),
    "ratio": (1.5, 2.0, 2.5, 3.0),
    "expansion": (0.5, 1.0, 2.25, 4.0),
    "expands_input": (False, True),
    "groups": ("8", "16", "32", UNGROUPED, DEPTHWISE, DEPTHWISE_PLAIN),
    "convolutions": (1, 2),
    "se_ratio": (0.0, 0.25, 0.5),
    "se_inside": (False, True),
    "final_expansion": (0.0, 2.0, 3.0),
    "stem": (16, 32),
    "activation": ("gelu", "silu"),
}
STAGES = (3, 4)
_DIVISOR = 8  # Of widths.


@dataclasses.dataclass(frozen=True)
class Design:
    """A network without its size.

    Attributes:
      depth: blocks of all stages together.
      slope: growth of the width per block, in first widths.
      ratio: of the widths of two stages, before they are rounded.
      expansion: width of the bottleneck over the block's input or output channels.
      expands_input: whether ``expansion`` counts from the input channels.
      groups: channels in a group of the 3x3 convolutions, or ``"none"`` for no groups, or
        ``"depthwise"`` with or without standardized kernels.
      convolutions: 3x3 convolutions of a block.
      se_ratio: hidden units of squeeze-excite over its channels; 0 leaves squeeze-excite out.
      se_inside: whether squeeze-excite is inside of the bottleneck, and not after it.
      final_expansion: channels of the last convolution over the last width; 0 leaves it out.
      stem: channels of the stem.
      activation: the nonlinearity.
    """

    depth: int
    slope: float
    ratio: float
    expansion: float
    expands_input: bool
    groups: str
    convolutions: int
    se_ratio: float
    se_inside: bool
    final_expansion: float
    stem: int
    activation: str

    def stages(self, first_width: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the stages' widths and depths, for a first width that need not be whole."""
        line = 1 + self.slope * np.arange(self.depth)
        powers = np.round(np.log(line) / math.log(self.ratio))
        widths = [rounded(first_width * self.ratio**power) for power in powers]
        stages = dict.fromkeys(widths, 0)
        for width in widths:
            stages[width] += 1
        return tuple(stages), tuple(stages.values())

    @property
    def stage_count(self) -> int:
        """Number of stages of a network so wide that rounding joins no two."""
        return len(self.stages(1000.0)[0])

    def network(self, first_width: float, size: int) -> NFNetConfig:
        """Returns the network of a first width for square images of ``size`` pixels a side."""
        width, depth = self.stages(first_width)
        return NFNetConfig(
            width=width,
            depth=depth,
            stem=((self.stem, 1),),
            strides=(1, *[2] * (len(width) - 1)),
            train_size=size,
            test_size=size,
            expansion=self.expansion,
            expands_input=self.expands_input,
            group_size=_GROUP_SIZES[self.groups],
            standardizes_spatial=self.groups != DEPTHWISE_PLAIN,
            spatial=("conv1", "conv1b")[: self.convolutions],
            se_ratio=self.se_ratio,
            excites_bottleneck=self.se_inside,
            final_expansion=self.final_expansion,
            activation=self.activation,
        )


_GROUP_SIZES = {"8": 8, "16": 16, "32": 32, UNGROUPED: None, DEPTHWISE: 1, DEPTHWISE_PLAIN: 1}


def draw(space: Space, rng: np.random.Generator, stages: Sequence[int] = STAGES) -> Design:
    """Draws a design uniformly from those of a space that have one of some numbers of stages."""
    while True:
        chosen = {name: values[rng.integers(len(values))] for name, values in space.items()}
        if not chosen["se_ratio"]:
            chosen["se_inside"] = False  # Two names of the same network.
        design = Design(**chosen)
        if design.stage_count in stages:
            return design


def contains(space: Space, design: Design) -> bool:
    """Returns whether a design has a value of the space in each dimension."""
    own = dataclasses.asdict(design)
    if not design.se_ratio:
        del own["se_inside"]
    return all(value in space[name] for name, value in own.items())


def rounded(width: float) -> int:
    """Returns the nearest whole number of channels that the networks have, at least 8."""
    return max(_DIVISOR, round(width / _DIVISOR) * _DIVISOR)
