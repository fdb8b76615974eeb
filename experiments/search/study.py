"""The search, from the anchor to the scaled winner."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

from nfnets_jax.errors import InputError

from ..studies import grid, images
from .baselines import efficientnet_within, nfnet_within
from .budgets import BUDGETS, Budget
from .comparison import (
    EFFICIENTNETS,
    Accuracies,
    Arm,
    Compared,
    baselines,
    batch_normalized,
    compare,
    test,
)
from .cost import Limits
from .proxy import Acceptance, Proxy, accept, tune
from .rounds import Drawn, Level, best, draw_networks, levels, narrow
from .runs import Network, Trainer
from .scaled_sizes import Scaled, scale
from .space import Space
from .timing import Ratio, Step, TimeModel, fit_times, step_ratio, training_step

LEAST_SPEEDUP = 1.3  # The winner's training step, over that of the EfficientNet.


class Round(NamedTuple):
    """A round: networks, and their accuracy on held-out images; 0 where training diverged."""

    drawn: list[Drawn]
    top1: list[float]
    epochs: float


class Times(NamedTuple):
    """The model of time, and the EfficientNet's step over the anchor's as measured."""

    model: TimeModel
    networks: int
    baseline: Ratio


class Final(NamedTuple):
    """What follows the rounds.

    Attributes:
      compared: finalists and baselines on held-out images, by name.
      winner: name of the best finalist.
      baseline: name of the EfficientNet with its best optimizer.
      speedup: the baseline's training step over the winner's.
      tested: both on the test images.
      scaled: both at larger sizes.
    """

    compared: dict[str, Compared]
    winner: str
    baseline: str
    speedup: Ratio
    tested: Accuracies
    scaled: Scaled


class Found(NamedTuple):
    """All that a search found; what follows a proxy that is not accepted is None or empty.

    Attributes:
      limits: the cost of the EfficientNet, which bounds that of all other networks.
      proxy: by which designs are trained.
      acceptance: of the proxy.
      rounds: the first and the second.
      levels: accuracy in the first round by dimension and value.
      narrowed: the space after the first round.
      times: of training steps.
      final: the comparison and the scaling.
      conditions: settings that all runs share.
      rows: settings and figures of all runs.
    """

    limits: Limits
    proxy: Proxy
    acceptance: Acceptance
    rounds: list[Round]
    levels: dict[str, list[Level]]
    narrowed: Space
    times: Times | None
    final: Final | None
    conditions: grid.Settings
    rows: list[grid.Row]


def search(workdir: Path, budget_name: str, data_dir: Path | None) -> Found:
    """Searches on CIFAR-10, or without ``data_dir`` on the digits, which have 8 pixels a side.

    Raises:
      InputError: CIFAR-10 is not in ``data_dir``, or that is missing; the directory holds another
        search; or no network is within the budget's limits.
    """
    budget = BUDGETS[budget_name]
    if images.side(data_dir, budget.size) != budget.size:
        raise InputError(
            f"the budget {budget_name} searches on CIFAR-10 at {budget.size} pixels: give TFDS's "
            "data directory"
        )
    trainer, conditions = _trainer(workdir, budget_name, budget, data_dir)
    size, asked = budget.size, dataclasses.replace(budget.limits, channels=trainer.channels)
    reference = Network("efficientnet", efficientnet_within(asked, size, budget.shallow), size)
    cost = asked.count(reference.config)
    limits = dataclasses.replace(
        asked, parameters=cost.parameters, multiply_adds=cost.multiply_adds
    )
    anchor = Network("nfnet", nfnet_within(limits, size, budget.shallow), size)

    proxy = tune(trainer, anchor, budget)
    first = _draw(trainer, "first", budget.drawn, budget, budget.space, limits)
    acceptance = _acceptance(trainer, first[: budget.correlated], proxy, budget)
    if budget.stops and not acceptance.is_accepted:
        tau = acceptance.tau.text(".2f")
        print(f"Kendall's tau is {tau}: the proxy is not accepted, the search ends", flush=True)
        return Found(
            limits, proxy, acceptance, [], {}, budget.space, None, None, conditions, trainer.rows
        )

    one = _round(trainer, "first round", first, budget.drawn_epochs, proxy)
    times = _times(trainer, first[: budget.timed], reference, anchor, budget)
    by_level = levels(budget.space, [each.design for each in one.drawn], one.top1)
    space = narrow(budget.space, by_level)
    half = budget.narrowed // 2
    kept = best(one.drawn, one.top1, space, budget.narrowed - half)
    second = [*kept, *_draw(trainer, "second", half, budget, space, limits)]
    two = _round(trainer, "second round", second, budget.narrowed_epochs, proxy)
    finalists = _finalists(two, times, budget.finalists)
    final = _final(trainer, finalists, anchor, proxy, budget, limits)
    return Found(
        limits, proxy, acceptance, [one, two], by_level, space, times, final, conditions,
        trainer.rows,
    )  # fmt: skip


def _trainer(
    workdir: Path, budget_name: str, budget: Budget, data_dir: Path | None
) -> tuple[Trainer, dict[str, Any]]:
    conditions = {
        "budget": budget_name,
        "data": images.name(data_dir),
        "image_size": budget.size,
        "batch_size": budget.batch_size,
    }
    dataset = images.open_images(data_dir)
    flips = data_dir is not None  # A mirrored digit is another one.
    trainer = Trainer(workdir, conditions, dataset, budget.batch_size, flips, budget.epochs)
    return trainer, conditions


def _draw(
    trainer: Trainer, stage: str, networks: int, budget: Budget, space: Space, limits: Limits
) -> list[Drawn]:
    return draw_networks(
        trainer, stage, networks, space, budget.stages, limits, budget.size, budget.least_share
    )


def _acceptance(trainer: Trainer, drawn: list[Drawn], proxy: Proxy, budget: Budget) -> Acceptance:
    members = [proxy.member(each.network) for each in drawn]
    # The short runs are those of the first round.
    short = trainer.train("first round", members, budget.drawn_epochs)
    long = trainer.train("full training", members, budget.final_epochs)
    return accept(*([row["top1"] or 0.0 for row in rows] for rows in (short, long)))


def _round(trainer: Trainer, stage: str, drawn: list[Drawn], epochs: float, proxy: Proxy) -> Round:
    rows = trainer.train(stage, [proxy.member(each.network) for each in drawn], epochs)
    return Round(drawn, [row["top1"] or 0.0 for row in rows], epochs)


def _times(
    trainer: Trainer, drawn: list[Drawn], reference: Network, anchor: Network, budget: Budget
) -> Times:
    networks = [reference, *(each.network for each in drawn)]
    found = _measure(trainer, "timing", networks, anchor, budget)
    ratios = [ratio.median for ratio in found[1:]]
    return Times(fit_times([each.cost for each in drawn], ratios), len(drawn), found[0])


def _measure(
    trainer: Trainer, stage: str, networks: list[Network], other: Network, budget: Budget
) -> list[Ratio]:
    """Returns the training step of each network over that of another, in turns."""
    by_name = {network.name: network for network in networks}

    def step_of(network: Network) -> Step:
        return training_step(trainer.task(network, 1), trainer.channels)

    anchor = functools.cache(lambda: step_of(other))  # Not needed where all is measured.

    def run(settings: grid.Settings) -> dict[str, float]:
        step = step_of(by_name[settings["network"]])
        return step_ratio(step, anchor(), budget.timed_steps)._asdict()

    rows = trainer.measure(stage, list(by_name), run)
    return [Ratio(row["median"], row["low"], row["high"]) for row in rows]


def _finalists(round_: Round, times: Times, number: int) -> list[Drawn]:
    """Returns the most accurate networks; first come those that are fast enough as predicted."""
    most = times.baseline.median / LEAST_SPEEDUP
    order = sorted(
        zip(round_.drawn, round_.top1, strict=True),
        key=lambda pair: (times.model.ratio(pair[0].cost) > most, -pair[1]),
    )
    return [each for each, _ in order[:number]]


def _final(
    trainer: Trainer,
    finalists: list[Drawn],
    anchor: Network,
    proxy: Proxy,
    budget: Budget,
    limits: Limits,
) -> Final:
    arms = baselines(budget, limits, proxy, anchor)
    arms |= {each.name: Arm(each.network, [proxy]) for each in finalists}
    compared = compare(trainer, arms, budget, limits, "comparison")
    winner = max((each.name for each in finalists), key=lambda name: compared[name].mean)
    baseline = max(EFFICIENTNETS, key=lambda name: compared[name].mean)
    ours, theirs = compared[winner], compared[baseline]
    normalized = {f"{winner}, batch norm": batch_normalized(ours.network, budget)}
    compared |= compare(trainer, normalized, budget, limits, "winner with batch norm")
    (speedup,) = _measure(trainer, "timing the winner", [theirs.network], ours.network, budget)
    scaled = scale(trainer, ours, theirs, budget, limits)
    tested = test(trainer, ours, theirs, budget)
    return Final(compared, winner, baseline, speedup, tested, scaled)
