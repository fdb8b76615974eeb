"""Final accuracy against the batch size: with batch normalization, without, and with AGC.

    python -m experiments.studies.batch_scaling --budget=cpu --data_dir=TFDS_DIR

A small ResNet, the NF-ResNet of its shape, and this one with AGC learn CIFAR-10 (the embedded
digits, without ``--data_dir``) for as many epochs at each batch size (NFNets, Brock et al. 2021b,
arXiv:2102.06171, figure 2), with learning rates chosen as ``contest`` says.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies import contest, grid
from experiments.studies.contest import Contender, Effort, Results

EFFORTS = {
    "smoke": Effort(0.5, (32, 128), (0.2,), seeds=1),
    "cpu": Effort(2, (64, 256, 1024, 4096), (0.05, 0.2, 0.8), seeds=3, image_size=16),
    "gpu": Effort(
        30, (64, 256, 1024, 2048, 4096, 8192), (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8), seeds=3
    ),
}
# Channels of the stages, each then of one block; None is the networks as they are.
_WIDTHS: Mapping[str, tuple[int, ...] | None] = {
    "smoke": (16, 32),
    "cpu": (32, 64, 128, 256),
    "gpu": None,
}
# A batch size is mastered where less is lost of the network's best accuracy.
_TOLERANCE = 0.02


def main() -> None:
    """Runs the study."""
    grid.command(__doc__.splitlines()[0], "batch_scaling", study)


def contenders(budget: str) -> dict[str, Contender]:
    """By their names in the report; of one shape."""
    normalized: dict[str, Any] = {}
    free: dict[str, Any] = {}
    width = _WIDTHS[budget]
    if width:
        shape = {"width": width, "depth": (1,) * len(width)}
        normalized = {**shape, "group_width": width[0] // 4}
        strides = (1, 2, 2, 2)[: len(width)]
        free = {**shape, "stem": ((width[0], 1),), "strides": strides}
    return {
        "batch-normalized": Contender("resnet26_small", "C7", overrides=normalized),
        "normalizer-free": Contender("nf_resnet26_small", "C0", overrides=free),
        "normalizer-free, AGC": Contender("nf_resnet26_small", "C1", 0.01, free),
    }


def study(workdir: Path, budget: str, data_dir: Path | None) -> None:
    """Trains, and writes the report."""
    networks, effort = contenders(budget), EFFORTS[budget]
    results = contest.compete(workdir, budget, networks, effort, data_dir)
    contest.draw(workdir / "accuracy.png", results, networks)
    body = "\n\n".join(
        [
            "; ".join(_verdict(name, results.top1(name)) for name in networks) + ".",
            _of_clipping(results, effort),
            contest.explanation(effort, len(results.tries)),
            "![Test top-1 against the batch size](accuracy.png)",
            contest.table(results, networks),
        ]
    )
    rows = [*results.tries, *results.finals]
    title = "Accuracy against batch size, equal epochs"
    grid.write_report(workdir, title, rows, body, results.common)


def _verdict(name: str, top1: Mapping[int, Sequence[float]]) -> str:
    means = {size: statistics.mean(values) for size, values in top1.items()}
    return (
        f"{name} {max(means.values()):.1%} at best, within {100 * _TOLERANCE:.0f} points of it up "
        f"to batch {mastered(top1)}, {means[max(means)]:.1%} at {max(means)}"
    )


def _of_clipping(results: Results, effort: Effort) -> str:
    """Whether it is as the paper has it, and if not, what was made sure of."""
    free, clipped = results.top1("normalizer-free"), results.top1("normalizer-free, AGC")
    largest = max(free)
    gain = 100 * (statistics.mean(clipped[largest]) - statistics.mean(free[largest]))
    if mastered(clipped) > mastered(free) and gain > 0:
        return "As in the paper's figure 2, the network with AGC holds up to larger batches."
    return (
        "The paper's figure 2, where AGC holds up to larger batches, is not confirmed: at "
        f"{largest} it changes top-1 by {gain:+.1f} points. Made sure of: at each batch size all "
        "learn the same images in as many steps, each at the best learning rate that was tried. "
        f"Not answered by {contest.epochs(effort)}: what the largest batches come to in a training "
        "as long as the paper's."
    )


def mastered(top1: Mapping[int, Sequence[float]]) -> int:
    """The largest batch size of those in a row, from the smallest good one, that do nearly best."""
    means = {size: statistics.mean(values) for size, values in sorted(top1.items())}
    least = max(means.values()) - _TOLERANCE
    found = 0
    for size, mean in means.items():
        if mean >= least:
            found = size
        elif found:
            break
    return found


if __name__ == "__main__":
    main()
