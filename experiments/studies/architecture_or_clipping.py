"""Tests whether NFNets owe their accuracy to their architecture or to AGC.

Tables 2 and 6 of NFNets (Brock et al. 2021b, arXiv:2102.06171) switch architecture, augmentation
and batch normalization, always with AGC in normalizer-free networks. This study switches AGC too.

    python -m experiments.studies.architecture_or_clipping --budget=cpu --data_dir=TFDS_DIR

Design: all sixteen combinations of four factors learn CIFAR-10 at batch 1024: normalizer-free or
batch-normalized; AGC or none; the block, widths and depths of NFNets or those of SE-ResNeXt-D, at
as many multiply-adds; RandAugment and mixing or only shifts and flips. Activation, excitation and
stem are the same everywhere. Rate and threshold are tuned for each combination as
``tuned_training`` describes. A factor's main effect is the mean difference that it makes over all
combinations of the others. Without ``--data_dir`` the networks learn the embedded digits.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from .. import process
from . import command, intervals, results, tuned_training
from .tuned_training import Arm, Budget, TunedRuns

BUDGETS = {
    "smoke": Budget(0.2, (64,), (0.2,), seeds=1, tunes=False),
    "cpu": Budget(10, (1024,), (0.2,), seeds=3, image_size=16),
    "gpu": Budget(10, (1024,), (0.1, 0.2), seeds=5),
}
THRESHOLD = 0.04
# Depths and widths of the two architectures, of about as many multiply-adds. The ratios of widths
# are 1, 2, 6, 6 and 1, 2, 4, 8; NFNets have larger groups and a second 3x3 convolution.
_STEM: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"stem": ((8, 2),), "strides": (1,)},
    "cpu": {"stem": ((8, 2), (16, 2)), "strides": (1, 1, 2, 1)},
    "gpu": {"stem": ((16, 1), (32, 1)), "strides": (1, 2, 2, 2)},
}
_NFNET: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"width": (8,), "depth": (1,), "group_size": 4},
    "cpu": {"width": (16, 32, 96, 96), "depth": (1, 2, 3, 1), "group_size": 8},
    "gpu": {"width": (32, 64, 192, 192), "depth": (1, 2, 3, 1), "group_size": 16},
}
_SE_RESNEXT: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"width": (8,), "depth": (1,), "group_size": 4},
    "cpu": {"width": (16, 32, 64, 128), "depth": (3, 4, 3, 3), "group_size": 4},
    "gpu": {"width": (32, 64, 128, 256), "depth": (4, 5, 6, 3), "group_size": 8},
}


class Factors(NamedTuple):
    """A combination: which level each factor has."""

    normalizer_free: bool
    agc: bool
    nfnet: bool
    augmented: bool

    @property
    def name(self) -> str:
        """The arm's name in tables."""
        return ", ".join(level[not on] for level, on in zip(_LEVELS.values(), self, strict=True))


# The two levels of each factor, the one with the factor first.
_LEVELS = {
    "normalizer_free": ("normalizer-free", "batch norm"),
    "agc": ("AGC", "no AGC"),
    "nfnet": ("NFNet", "SE-ResNeXt-D"),
    "augmented": ("RandAugment and mixing", "shifts and flips"),
}
COMBINATIONS = [Factors(*levels) for levels in itertools.product((True, False), repeat=4)]


def arms(budget: str) -> dict[str, Arm]:
    """Returns the networks by name; ``smoke`` leaves out those that are augmented."""
    return {
        factors.name: _arm(budget, factors)
        for factors in COMBINATIONS
        if not (factors.augmented and budget == "smoke")
    }


def _arm(budget: str, factors: Factors) -> Arm:
    shape = {**_STEM[budget], **(_NFNET if factors.nfnet else _SE_RESNEXT)[budget]}
    if not factors.nfnet:
        shape |= {"spatial": ("conv1",), "final_expansion": 0}
    model = "nfnet_tiny" if factors.normalizer_free else "nfnet_tiny_bn"
    return Arm(model, "C0", (THRESHOLD if factors.agc else 0.0,), shape, factors.augmented)


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Tunes and trains all combinations."""
    compared = arms(budget)
    runs = tuned_training.train_tuned(workdir, budget, compared, BUDGETS[budget], data_dir)
    found = effects(runs)
    return results.Results(
        conditions={**runs.conditions, "seeds": BUDGETS[budget].seeds},
        rows=[*runs.tuning, *runs.final],
        tables=[effect_table(found), tuned_training.accuracy_table(runs, compared)],
        pictures={"effects": draw(found)},
    )


def effects(runs: TunedRuns) -> dict[str, intervals.Interval]:
    """Returns the main effect of each factor, and that of AGC at each level of the others.

    They are those of the combinations that were trained; a factor of one level has none.
    """
    trained = ((factors, runs.top1(factors.name)) for factors in COMBINATIONS)
    top1 = {factors: next(iter(by_batch.values())) for factors, by_batch in trained if by_batch}
    found = {}
    for factor, (on, off) in _LEVELS.items():
        if len({getattr(factors, factor) for factors in top1}) == 2:
            found[f"{on}, less {off}"] = _effect(top1, factor, list(top1))
    for factor, levels in _LEVELS.items():
        for level, is_on in zip(levels, (True, False), strict=True):
            own = [factors for factors in top1 if getattr(factors, factor) == is_on]
            if own and factor != "agc":
                found[f"AGC, less no AGC: {level}"] = _effect(top1, "agc", own)
    return found


def _effect(
    top1: Mapping[Factors, Sequence[float]], factor: str, among: Sequence[Factors]
) -> intervals.Interval:
    signs = [2 if getattr(factors, factor) else -2 for factors in among]
    return intervals.contrast(
        [top1[factors] for factors in among], [sign / len(among) for sign in signs]
    )


def effect_table(found: Mapping[str, intervals.Interval]) -> str:
    """Returns the effects in Markdown."""
    return results.table(
        "Effects on test top-1 in points, means over the combinations of the other factors, with "
        "their 95% bootstrap intervals.",
        ("effect", "points"),
        [(name, effect.points()) for name, effect in found.items()],
    )


def draw(found: Mapping[str, intervals.Interval]) -> Figure:
    """Draws the effects with their intervals."""
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    points, *ends = 100 * np.array(list(found.values())).T
    bars = np.nan_to_num(np.abs(ends - points))  # One seed has no interval.
    axes.errorbar(points, list(found), xerr=bars, fmt="o", capsize=3)
    axes.axvline(0, color="C7")
    axes.invert_yaxis()
    main = [name for name in found if ":" not in name]
    largest = max(main, key=lambda name: abs(found[name].estimate))
    axes.set(xlabel="points of test top-1", title=f"Largest main effect: {largest}")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    process.use_cores_as_devices()
    command.run("architecture_or_clipping", __doc__, study)
