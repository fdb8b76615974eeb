"""What a network costs, and the widest network within limits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from nfnets_jax.models.counting import summarize
from nfnets_jax.models.registry import Model

_HALVINGS = 7


class Cost(NamedTuple):
    """Counts of a network, for inference on one image of its training resolution."""

    parameters: int
    multiply_adds: int
    activations: int


@functools.lru_cache(maxsize=4096)
def count(config: Any, channels: int = 3, classes: int = 10) -> Cost:
    """Counts a network, given by its options."""
    summary = summarize(Model("counted", classes, config), config.train_size, channels)
    return Cost(summary.parameters, *summary.work)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a network's cost, for images of ``channels`` in ``classes``."""

    parameters: float
    multiply_adds: float
    channels: int = 3
    classes: int = 10

    def count(self, config: Any) -> Cost:
        """Counts a network for these images."""
        return count(config, self.channels, self.classes)

    def allow(self, config: Any) -> bool:
        """Returns whether neither parameters nor multiply-adds of a network exceed the bounds."""
        cost = self.count(config)
        return cost.parameters <= self.parameters and cost.multiply_adds <= self.multiply_adds

    def times(self, work: float) -> "Limits":
        """Returns bounds of ``work`` times the multiply-adds, and of any number of parameters."""
        more = work * self.multiply_adds
        return dataclasses.replace(self, parameters=float("inf"), multiply_adds=more)


def widest(make: Callable[[float], Any], limits: Limits, low: float, high: float) -> float | None:
    """Returns the largest width whose network is within limits, by bisection of logarithms.

    Args:
      make: a network's options by its width, with which its costs grow.
      limits: bounds of the costs.
      low, high: the range of the width; ``high`` is taken to be too large.

    Returns:
      The width; None if that of ``low`` is too large already.
    """
    if not limits.allow(make(low)):
        return None
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        if limits.allow(make(middle)):
            low = middle
        else:
            high = middle
    return low
