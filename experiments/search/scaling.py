"""Scales the winner: a compound rule for depth, width and resolution, as EfficientNets have one.

Tan and Le 2019, arXiv:1905.11946, section 3.3. A rule gives the factors of depth, width and
resolution as powers of the factor of multiply-adds. Those are proportional to depth, and to the
squares of width and resolution, so that ``depth + 2 width + 2 resolution`` of the powers is 1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nfnets_jax.models.nfnet import NFNetConfig

from .baselines import scaled, with_size, within
from .cost import Limits

# The share of what resolution leaves of the work that goes to depth; the rest goes to width.
DEPTH_SHARES = (0.25, 0.75)


class Rule(NamedTuple):
    """Powers of the factor of multiply-adds."""

    depth: float
    width: float
    resolution: float


class Split(NamedTuple):
    """A way to spend more multiply-adds.

    Attributes:
      size: side of the images in pixels.
      depth_share: share of what the resolution leaves of the work, in logarithms, that is depth's.
    """

    size: int
    depth_share: float


def splits(sizes: Sequence[int]) -> list[Split]:
    """Returns the ways that are tried."""
    return [Split(size, share) for size in sizes for share in DEPTH_SHARES]


def split_rule(split: Split, size: int, work: float) -> Rule:
    """Returns the rule that a split follows.

    Args:
      split: how the work is spent.
      size: side of the winner's own images in pixels.
      work: factor of multiply-adds.
    """
    resolution = math.log(split.size / size) / math.log(work)
    return _rule(resolution, split.depth_share)


def fit(tried: Sequence[Split], top1: Sequence[float], size: int, work: float) -> Rule:
    """Fits a rule to the accuracy of splits of equal work.

    Accuracy is taken to be quadratic in the power of resolution and linear in the share of depth,
    and the rule is the best of the range that was tried.

    Args:
      tried: the splits, of at least three sizes.
      top1: accuracy of each.
      size: side of the winner's own images in pixels.
      work: factor of multiply-adds of all of them.
    """
    powers = np.array([split_rule(split, size, work).resolution for split in tried])
    shares = np.array([split.depth_share for split in tried])
    terms = np.stack([np.ones_like(powers), powers, powers**2, shares], axis=1)
    _, slope, curvature, by_share = np.linalg.lstsq(terms, np.array(top1), rcond=None)[0]
    candidates = [powers.min(), powers.max()]
    if curvature < 0:
        candidates.append(np.clip(-slope / (2 * curvature), *candidates))
    resolution = max(candidates, key=lambda power: slope * power + curvature * power**2)
    return _rule(float(resolution), float(shares.max() if by_share > 0 else shares.min()))


def _rule(resolution: float, depth_share: float) -> Rule:
    rest = 1 - 2 * resolution
    return Rule(depth_share * rest, (1 - depth_share) * rest / 2, resolution)


def apply(rule: Rule, config: NFNetConfig, work: float, limits: Limits) -> NFNetConfig:
    """Returns a network with about ``work`` times the multiply-adds.

    Depth and resolution follow the rule, rounded; the width is then the largest within the limits,
    which makes up for the rounding.

    Args:
      rule: the powers.
      config: the network, whose ``train_size`` is the side of its images in pixels.
      work: factor of multiply-adds.
      limits: bounds of the result.

    Raises:
      InputError: the network is too large at any width.
    """
    deeper = with_size(
        scaled(config, 1.0, work**rule.depth), round(config.train_size * work**rule.resolution)
    )
    return within(limits, lambda width: scaled(deeper, width))
