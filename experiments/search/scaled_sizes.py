"""Fits the winner's scaling rule at twice the multiply-adds, and tests it at four times."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from ..studies import intervals
from .baselines import efficientnet_within
from .budgets import Budget
from .comparison import Compared
from .cost import Limits
from .runs import Member, Network, Trainer
from .scaling import Rule, Split, apply, fit, split_rule, splits

FITTED = 2.0  # Times the winner's multiply-adds.
# EfficientNets' own rule, for a doubling of multiply-adds (Tan and Le 2019, section 5.1).
_EFFICIENTNET_DEPTH, _EFFICIENTNET_RESOLUTION = 1.2, 1.15


class Scaled(NamedTuple):
    """What scaling is worth, on held-out images.

    Attributes:
      splits: ways to spend twice the multiply-adds.
      top1: accuracy of each, a list of seeds.
      rule: fitted to them.
      networks: the winner scaled by the rule, by the factor of multiply-adds.
      gains: its accuracy less that of EfficientNet as large, by the factor, with the intervals.
    """

    splits: list[Split]
    top1: list[list[float]]
    rule: Rule
    networks: dict[float, Network]
    gains: dict[float, intervals.Interval]


def scale(
    trainer: Trainer, winner: Compared, baseline: Compared, budget: Budget, limits: Limits
) -> Scaled:
    """Trains the splits, fits the rule, and compares by it with the baseline, scaled by its own."""
    config = winner.network.config
    own = dataclasses.replace(limits, multiply_adds=winner.cost.multiply_adds)
    tried = splits(budget.sizes)
    networks = []
    for number, split in enumerate(tried):
        rule = split_rule(split, budget.size, FITTED)
        wider = apply(rule, config, FITTED, own.times(FITTED))
        networks.append(Network(f"split-{number}", wider, wider.train_size))
    top1 = _train(trainer, "splits", networks, winner, budget)
    means = [sum(each) / len(each) for each in top1]
    rule = fit(tried, means, budget.size, FITTED)

    by_rule, gains = {}, {}
    for work in budget.scales:
        larger = apply(rule, config, work, own.times(work))
        by_rule[work] = Network(f"winner-x{work:g}", larger, larger.train_size)
        other = _efficientnet(baseline, work, budget, limits)
        ours = _train(trainer, f"winner times {work:g}", [by_rule[work]], winner, budget)
        theirs = _train(trainer, f"baseline times {work:g}", [other], baseline, budget)
        gains[work] = intervals.difference(*ours, *theirs)
    return Scaled(tried, top1, rule, by_rule, gains)


def _train(
    trainer: Trainer,
    stage: str,
    networks: Sequence[Network],
    tuned: Compared,
    budget: Budget,
) -> list[list[float]]:
    """Returns the accuracies of each network, a list of seeds, by the pair of a smaller one."""
    seeds = range(budget.seeds)
    members = [Member(network, *tuned.pair, seed) for network in networks for seed in seeds]
    rows = iter(trainer.train(stage, members, budget.final_epochs))
    return [[next(rows)["top1"] or 0.0 for _ in seeds] for _ in networks]


def _efficientnet(baseline: Compared, work: float, budget: Budget, limits: Limits) -> Network:
    size = round(budget.size * _EFFICIENTNET_RESOLUTION ** math.log2(work))
    depth = _EFFICIENTNET_DEPTH ** math.log2(work)
    own = dataclasses.replace(limits, multiply_adds=baseline.cost.multiply_adds)
    config = efficientnet_within(own.times(work), size, budget.shallow, depth)
    return Network(f"efficientnet-x{work:g}", config, size, baseline.network.rmsprop)
