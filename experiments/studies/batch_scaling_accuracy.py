"""Tests the claim that AGC lets normalizer-free networks train with large batches.

The claim is from NFNets (Brock et al. 2021b, arXiv:2102.06171, section 4.1, figure 2), whose
threshold is tuned for each batch size. ``batch_scaling`` measures the mechanism.

    python -m experiments.studies.batch_scaling_accuracy --budget=cpu --data_dir=TFDS_DIR

Design: a batch-normalized network, the same network normalizer-free, and this one with AGC learn
CIFAR-10 for the same number of epochs at a small and a large batch. The network has at least 18
blocks without a transition, as depth is what makes large rates unstable. Rate and threshold are
tuned for each arm and batch as ``tuned_training`` describes. Without ``--data_dir`` the networks
learn the embedded digits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import process
from . import command, intervals, results, tuned_training
from .tuned_training import Arm, Budget, TunedRuns

BUDGETS = {
    "smoke": Budget(0.2, (64,), (0.2,), seeds=1, tunes=False),
    "cpu": Budget(20, (128, 2048), (0.1, 0.2), seeds=5, image_size=16),
    "gpu": Budget(20, (128, 2048, 4096), (0.1, 0.2, 0.4), seeds=5),
}
# The stem of ``cpu`` leaves 4 of 16 pixels, so that a run takes minutes of a core.
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"width": (8,), "depth": (2,), "strides": (1,), "stem": ((8, 2),), "group_size": 4},
    "cpu": {
        "width": (16,),
        "depth": (20,),
        "strides": (1,),
        "stem": ((16, 2), (16, 2)),
        "group_size": 8,
    },
    "gpu": {
        "width": (32, 64, 128),
        "depth": (7, 7, 7),
        "strides": (1, 2, 2),
        "stem": ((16, 1), (32, 1)),
        "group_size": 16,
    },
}
NORMALIZED, FREE, CLIPPED = "batch norm", "normalizer-free", "normalizer-free, AGC"
_THRESHOLDS = (0.02, 0.08)


def arms(budget: str) -> dict[str, Arm]:
    """Returns the networks that are compared, by name."""
    shape = {**_SHAPES[budget], "spatial": ("conv1",), "final_expansion": 0}
    return {
        NORMALIZED: Arm("nfnet_tiny_bn", "C7", overrides=shape),
        FREE: Arm("nfnet_tiny", "C0", overrides=shape),
        CLIPPED: Arm("nfnet_tiny", "C1", _THRESHOLDS, shape),
    }


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Tunes and trains the networks at each batch size."""
    compared = arms(budget)
    runs = tuned_training.train_tuned(workdir, budget, compared, BUDGETS[budget], data_dir)
    title = title_of(runs)
    return results.Results(
        conditions={**runs.conditions, "seeds": BUDGETS[budget].seeds},
        rows=[*runs.tuning, *runs.final],
        tables=[tuned_training.accuracy_table(runs, compared), difference_table(runs)],
        pictures={"accuracy": tuned_training.accuracy_figure(runs, compared, title)},
    )


def difference_table(runs: TunedRuns) -> str:
    """Returns what AGC and batch normalization gain at each batch size, in Markdown."""
    rows = []
    for batch_size, plain in runs.top1(FREE).items():
        for name in (CLIPPED, NORMALIZED):
            gain = intervals.difference(runs.top1(name)[batch_size], plain)
            rows.append((batch_size, f"{name}, less {FREE}", gain.points()))
    return results.table(
        "Differences of test top-1 in points, with their 95% bootstrap intervals.",
        ("batch size", "difference", "points"),
        rows,
    )


def title_of(runs: TunedRuns) -> str:
    """Returns the finding: what AGC gains at the largest batch."""
    batch_size, plain = max(runs.top1(FREE).items())
    gain = intervals.difference(runs.top1(CLIPPED)[batch_size], plain)
    return f"At batch {batch_size}, AGC changes test top-1 by {gain.points()} points"


if __name__ == "__main__":
    process.use_cores_as_devices()
    command.run("batch_scaling_accuracy", __doc__, study)
