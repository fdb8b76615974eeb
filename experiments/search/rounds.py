"""Rounds of random networks: drawing them within limits, and narrowing the space by the results."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nfnets_jax.errors import InputError

from ..studies import grid, intervals
from .cost import Cost, Limits, widest
from .runs import Network, Trainer
from .space import Design, Space, contains, draw

# Of the first width, between which the largest is sought.
_LOW, _HIGH = 4.0, 512.0
_TRIES = 1000


class Drawn(NamedTuple):
    """A network of the search, and what it costs."""

    name: str
    design: Design
    network: Network
    cost: Cost


def draw_networks(
    trainer: Trainer,
    stage: str,
    networks: int,
    space: Space,
    stages: Sequence[int],
    limits: Limits,
    size: int,
    least_share: float,
) -> list[Drawn]:
    """Draws random networks as large as the limits allow; they are the same when drawn again.

    Args:
      trainer: keeps the networks.
      stage: of the search; each stage draws others.
      networks: how many.
      space, stages: what is drawn from.
      limits: of the networks' costs.
      size: side of the images in pixels.
      least_share: of the multiply-adds of the limits that a network has. One far below them would
        show what a smaller network is worth.

    Raises:
      InputError: hardly any design of the space has a network near the limits.
    """

    def run(settings: grid.Settings) -> dict[str, Any]:
        seed = [*stage.encode(), int(settings["network"])]
        rng = np.random.default_rng(seed)
        for _ in range(_TRIES):
            design = draw(space, rng, stages)
            width = _first_width(design, limits, size, least_share)
            if width is not None:
                return {"design": json.dumps(dataclasses.asdict(design)), "first_width": width}
        raise InputError(
            f"{_TRIES} designs have no network of {least_share:.0%} to 100% of "
            f"{limits.multiply_adds:,} multiply-adds and at most {limits.parameters:,} parameters: "
            "change the limits"
        )

    drawn = []
    for number, row in enumerate(trainer.measure(f"drawing {stage}", range(networks), run)):
        design = Design(**json.loads(row["design"]))
        config = design.network(row["first_width"], size)
        network = Network(f"{stage}-{number}", config, size)
        drawn.append(Drawn(network.name, design, network, limits.count(config)))
    return drawn


def _first_width(design: Design, limits: Limits, size: int, least_share: float) -> float | None:
    """Returns the largest first width within the limits; None if its network is far below them."""
    width = widest(lambda first: design.network(first, size), limits, _LOW, _HIGH)
    if width is None:
        return None
    config = design.network(width, size)
    is_near = limits.count(config).multiply_adds >= least_share * limits.multiply_adds
    return width if is_near and len(config.width) == design.stage_count else None


class Level(NamedTuple):
    """The networks with one value of one dimension.

    Attributes:
      value: of the dimension.
      top1: accuracy of each network that has it.
      gain: mean accuracy less that of the networks with other values, with its interval. It is the
        area between the two empirical distribution functions of the error.
    """

    value: Any
    top1: list[float]
    gain: intervals.Interval


def levels(
    space: Space, designs: Sequence[Design], top1: Sequence[float]
) -> dict[str, list[Level]]:
    """Returns the values of each dimension that networks have, with their accuracies."""
    found: dict[str, list[Level]] = {}
    for name, values in space.items():
        own = [getattr(design, name) for design in designs]
        for value in values:
            split: dict[bool, list[float]] = {True: [], False: []}
            for each, accuracy in zip(own, top1, strict=True):
                split[each == value].append(accuracy)
            if split[True] and split[False]:
                gain = intervals.difference(split[True], split[False])
                found.setdefault(name, []).append(Level(value, split[True], gain))
    return found


def narrow(space: Space, found: dict[str, list[Level]]) -> Space:
    """Returns the space without the values that are worse than the others of their dimension.

    A value is worse if the 95% interval of its gain is below 0. Values without networks stay.
    """
    worse = {
        (name, level.value) for name, each in found.items() for level in each if level.gain.high < 0
    }
    return {
        name: tuple(value for value in values if (name, value) not in worse)
        for name, values in space.items()
    }


def best(drawn: Sequence[Drawn], top1: Sequence[float], space: Space, number: int) -> list[Drawn]:
    """Returns the most accurate networks of a space; of all, where the space has too few."""
    order = sorted(
        range(len(drawn)), key=lambda at: (not contains(space, drawn[at].design), -top1[at])
    )
    return [drawn[at] for at in order[:number]]
