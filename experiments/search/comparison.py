"""The final comparison: finalists and baselines on held-out images, then two on the test images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nfnets_jax.models import bn_nfnet

from ..studies import intervals
from .baselines import efficientnet_within, nf_regnet_within
from .budgets import Budget
from .cost import Cost, Limits
from .proxy import Proxy
from .runs import Member, Network, Trainer

_EXTENSIONS = 3  # Of the range of an arm's rates.
EFFICIENTNETS = ("EfficientNet, RMSProp", "EfficientNet, SGD")


class Arm(NamedTuple):
    """A network to compare, and the pairs of rate and threshold that it may choose from."""

    network: Network
    pairs: Sequence[tuple[float, float]]


class Compared(NamedTuple):
    """An arm's accuracy on held-out images by its best pair.

    Attributes:
      network: that was trained.
      pair: rate, for a batch of 256, and threshold with the highest mean accuracy.
      top1: of each seed with this pair; 0 where training diverged.
      cost: of the network.
    """

    network: Network
    pair: tuple[float, float]
    top1: list[float]
    cost: Cost

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return sum(self.top1) / len(self.top1)


def baselines(budget: Budget, limits: Limits, proxy: Proxy, anchor: Network) -> dict[str, Arm]:
    """Returns the networks that are measured beside the finalists, by name.

    EfficientNet and NF-RegNet choose between two rates, or those beyond. The proxy is the anchor's
    own best pair.
    """
    efficientnet = efficientnet_within(limits, budget.size, budget.shallow)
    regnet = nf_regnet_within(limits, budget.size, budget.shallow)
    by_rmsprop, by_sgd = EFFICIENTNETS
    size = budget.size
    unclipped = [(rate, 0.0) for rate in budget.baseline_rates]
    clipped = [(rate, proxy.clipping) for rate in budget.baseline_rates]
    slow = [(rate, 0.0) for rate in budget.rmsprop_rates]
    return {
        by_rmsprop: Arm(Network("efficientnet", efficientnet, size, rmsprop=True), slow),
        by_sgd: Arm(Network("efficientnet", efficientnet, size), unclipped),
        "NF-RegNet": Arm(Network("nf_regnet", regnet, size), clipped),
        "NFNet": Arm(anchor, [proxy]),
    }


def batch_normalized(winner: Network, budget: Budget) -> Arm:
    """Returns the winner with batch normalization, and without AGC."""
    config = bn_nfnet.twin(winner.config)
    pairs = [(rate, 0.0) for rate in budget.baseline_rates]
    return Arm(Network(f"{winner.name}-bn", config, winner.size), pairs)


def compare(
    trainer: Trainer, arms: Mapping[str, Arm], budget: Budget, limits: Limits, stage: str
) -> dict[str, Compared]:
    """Trains all arms with all their pairs and seeds, and tests them on held-out images.

    An arm that may choose its rate and is best at the lowest or highest one tries the next, a
    factor of 2 away, a few times.
    """
    seeds = range(budget.seeds)
    top1: dict[str, dict[tuple[float, float], list[float]]] = {name: {} for name in arms}
    left = {name: list(arm.pairs) for name, arm in arms.items()}
    for _ in range(1 + _EXTENSIONS):
        members = [
            Member(arms[name].network, *pair, seed)
            for name, pairs in left.items()
            for pair in pairs
            for seed in seeds
        ]
        rows = iter(trainer.train(stage, members, budget.final_epochs))
        for name, pairs in left.items():
            for rate, clipping in pairs:
                top1[name][rate, clipping] = [next(rows)["top1"] or 0.0 for _ in seeds]
        left = {name: found for name, each in top1.items() if (found := _beyond(each))}
        if not left:
            break
    for name in left:
        print(f"{stage}: the best rate of {name} is at the edge of those tried", flush=True)
    compared = {}
    for name, by_pair in top1.items():
        network, best = arms[name].network, _best(by_pair)
        cost = limits.count(network.config)
        compared[name] = Compared(network, best, by_pair[best], cost)
    return compared


def _best(top1: Mapping[tuple[float, float], Sequence[float]]) -> tuple[float, float]:
    return max(top1, key=lambda pair: sum(top1[pair]))


def _beyond(top1: Mapping[tuple[float, float], Sequence[float]]) -> list[tuple[float, float]]:
    """Returns the next pair of an arm that is best at the edge of several rates."""
    rates = [rate for rate, _ in top1]
    rate, clipping = _best(top1)
    if len(rates) == 1 or min(rates) < rate < max(rates):
        return []
    return [(rate * 2 if rate == max(rates) else rate / 2, clipping)]


class Accuracies(NamedTuple):
    """Accuracy of the winner and of the baseline on the test images, a number a seed."""

    winner: list[float]
    baseline: list[float]

    @property
    def difference(self) -> intervals.Interval:
        """The winner's mean less the baseline's, a share."""
        return intervals.difference(self.winner, self.baseline)


def test(trainer: Trainer, winner: Compared, baseline: Compared, budget: Budget) -> Accuracies:
    """Trains two networks on all training images, and reads the test images, once a run."""
    members = [
        Member(each.network, *each.pair, seed)
        for each in (winner, baseline)
        for seed in range(budget.test_seeds)
    ]
    rows = trainer.train("testing", members, budget.final_epochs, tests=True)
    top1 = [row["top1"] or 0.0 for row in rows]
    return Accuracies(top1[: budget.test_seeds], top1[budget.test_seeds :])
