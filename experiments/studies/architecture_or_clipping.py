"""Whether NFNets owe their accuracy to their architecture or to Adaptive Gradient Clipping.

    python -m experiments.studies.architecture_or_clipping --budget=cpu --data_dir=TFDS_DIR

Two by two: what NFNets started from, an SE-ResNeXt-D without normalization, and an NFNet of as many
multiply-adds (other depths and widths, a second 3x3 convolution; Brock et al. 2021b,
arXiv:2102.06171, section 5), each without AGC and with it; beside them the SE-ResNeXt-D with batch
normalization. They learn CIFAR-10 (the embedded digits, without ``--data_dir``) at two batch sizes,
with learning rates chosen as ``contest`` says. Then the threshold of the clipping is varied.
"""

import functools
import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.studies import contest, grid
from experiments.studies.contest import Contender, Effort, Results

EFFORTS = {
    "smoke": Effort(0.2, (32,), (0.2,), seeds=1),
    "cpu": Effort(1, (64, 1024), (0.05, 0.2, 0.8), seeds=3, image_size=16),
    "gpu": Effort(30, (256, 4096), (0.025, 0.05, 0.1, 0.2, 0.4, 0.8), seeds=3),
}
_SEEDS_OF_THRESHOLDS = 1
# Points of accuracy that are no difference.
_TOLERANCE = 2.0
THRESHOLDS = {"smoke": (0.01, 0.04), "cpu": (0.0025, 0.01, 0.04), "gpu": (0.0025, 0.01, 0.04, 0.16)}
NORMALIZED, PLAIN, NFNET = "SE-ResNeXt-D, batch-normalized", "SE-ResNeXt-D", "NFNet"
_MODELS = {NORMALIZED: "seresnext26d_small", PLAIN: "nf_seresnext26d_small", NFNET: "nfnet_tiny"}
_COLORS = {NORMALIZED: "C7", PLAIN: "C0", NFNET: "C1"}
# Settings to replace, so that all have about as many multiply-adds.
_TINY = {"width": (16, 32), "depth": (1, 1)}
SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "smoke": {
        NORMALIZED: {**_TINY, "groups": 1},
        PLAIN: {**_TINY, "strides": (1, 2), "group_size": 8},
        NFNET: {**_TINY, "strides": (1, 2), "group_size": 8},
    },
    "cpu": {
        NORMALIZED: {"width": (16, 24, 48, 96), "groups": 1},
        PLAIN: {"width": (16, 32, 64, 128), "stem": ((16, 1),), "group_size": 8},
        NFNET: {
            "width": (16, 32, 72, 72),
            "depth": (1, 1, 2, 1),
            "stem": ((8, 1), (8, 1)),
            "group_size": 8,
        },
    },
    "gpu": {
        NORMALIZED: {},
        PLAIN: {},
        NFNET: {"width": (64, 128, 320, 320), "depth": (1, 1, 2, 1), "group_size": 16},
    },
}


def main() -> None:
    """Runs the study."""
    grid.command(__doc__.splitlines()[0], "architecture_or_clipping", study)


def contenders(budget: str, thresholds: tuple[float, ...] = (0.0, 0.01)) -> dict[str, Contender]:
    """By their names in the report; the batch-normalized one only without clipping."""
    return {
        _name(network, threshold): Contender(
            _MODELS[network], _COLORS[network], threshold, SIZES[budget][network]
        )
        for network, threshold in itertools.product(_MODELS, thresholds)
        if network != NORMALIZED or not threshold
    }


def _name(network: str, threshold: float) -> str:
    return f"{network}, AGC {threshold:g}" if threshold else network


def study(workdir: Path, budget: str, data_dir: Path | None) -> None:
    """Trains, and writes the report."""
    effort, networks = EFFORTS[budget], contenders(budget)
    results = contest.compete(workdir, budget, networks, effort, data_dir)
    clipped = contenders(budget, THRESHOLDS[budget])
    largest = effort._replace(batch_sizes=effort.batch_sizes[-1:], seeds=_SEEDS_OF_THRESHOLDS)
    thresholds = contest.compete(workdir, budget, clipped, largest, data_dir)

    contest.draw(workdir / "accuracy.png", results, networks)
    rows = [*results.tries, *results.finals]
    rows += [row for row in [*thresholds.tries, *thresholds.finals] if row not in rows]
    body = "\n\n".join(
        [
            *(_verdict(results, size) for size in effort.batch_sizes),
            *_of_small_batches(results, effort),
            contest.explanation(effort, sum(row["held_out"] > 0 for row in rows)),
            "![Test top-1 against the batch size](accuracy.png)",
            contest.table(results, networks),
            f"Thresholds of the clipping, at the largest batch, {_SEEDS_OF_THRESHOLDS} seed each:",
            contest.table(thresholds, clipped),
        ]
    )
    grid.write_report(workdir, "Architecture or clipping", rows, body, results.common)


def _verdict(results: Results, batch_size: int) -> str:
    """What each of the two brings, with and without the other, in points of accuracy."""
    top1 = functools.partial(_top1, results, batch_size)
    clipping = _of_clipping(results, batch_size)
    architecture = [top1(NFNET, threshold) - top1(PLAIN, threshold) for threshold in (0, 0.01)]
    return (
        f"Batch {batch_size}: clipping brings {clipping[0]:+.1f} points to the SE-ResNeXt-D and "
        f"{clipping[1]:+.1f} to the NFNet; the NFNet's architecture {architecture[0]:+.1f} without "
        f"clipping and {architecture[1]:+.1f} with it; batch normalization instead of both "
        f"{top1(NORMALIZED, 0) - top1(PLAIN, 0):+.1f} to the SE-ResNeXt-D."
    )


def _of_small_batches(results: Results, effort: Effort) -> list[str]:
    """Where clipping costs accuracy that it does not in the paper: what was made sure of."""
    smallest = min(effort.batch_sizes)
    if min(_of_clipping(results, smallest)) > -_TOLERANCE:
        return []
    return [
        f"That clipping costs accuracy at batch {smallest} is not in the paper (section 4.1), by "
        "which it changes little at small batches. Made sure of: with clipping and without, each "
        "network has the best learning rate that was tried, from grids that went on at their "
        f"edges. Not answered by {contest.epochs(effort)}: what a longer training makes up for."
    ]


def _of_clipping(results: Results, batch_size: int) -> list[float]:
    """Points of accuracy that AGC brings to the SE-ResNeXt-D and to the NFNet."""
    top1 = functools.partial(_top1, results, batch_size)
    return [top1(network, 0.01) - top1(network, 0) for network in (PLAIN, NFNET)]


def _top1(results: Results, batch_size: int, network: str, threshold: float) -> float:
    return 100 * statistics.mean(results.top1(_name(network, threshold))[batch_size])


if __name__ == "__main__":
    main()
