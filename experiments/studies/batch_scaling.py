"""Tests the claim that AGC lets normalizer-free networks train with large batches.

The claim is from NFNets (Brock et al. 2021b, arXiv:2102.06171, section 4.1, figure 2).

    python -m experiments.studies.batch_scaling --budget=cpu --data_dir=TFDS_DIR

Design: a small ResNet, an NF-ResNet of the same shape, and this NF-ResNet with AGC learn CIFAR-10
for the same number of epochs at each batch size. Learning rates are tuned as ``tuned_training``
describes; the threshold of AGC is fixed. Without ``--data_dir`` they learn the embedded digits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import command, results, tuned_training
from .tuned_training import Budget, Network

BUDGETS = {
    "smoke": Budget(0.1, (32, 128), (0.2,), seeds=1, image_size=8),
    "cpu": Budget(2, (64, 256, 1024, 4096), (0.05, 0.2, 0.8), seeds=3, image_size=16),
    "gpu": Budget(
        30, (64, 256, 1024, 2048, 4096, 8192), (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8), seeds=3
    ),
}
# Channels of the stages, of one block each; None keeps the registered networks.
_WIDTHS: Mapping[str, tuple[int, ...] | None] = {
    "smoke": (16,),
    "cpu": (32, 64, 128, 256),
    "gpu": None,
}
_CLIPPING = 0.01


def networks(budget: str) -> dict[str, Network]:
    """Returns the networks that are compared, by name."""
    normalized: dict[str, Any] = {}
    free: dict[str, Any] = {}
    width = _WIDTHS[budget]
    if width:
        shape = {"width": width, "depth": (1,) * len(width)}
        normalized = {**shape, "group_width": width[0] // 4}
        free = {**shape, "stem": ((width[0], 1),), "strides": (1, 2, 2, 2)[: len(width)]}
    return {
        "batch-normalized": Network("resnet26_small", "C7", overrides=normalized),
        "normalizer-free": Network("nf_resnet26_small", "C0", overrides=free),
        "normalizer-free, AGC": Network("nf_resnet26_small", "C1", _CLIPPING, free),
    }


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Trains the networks at each batch size."""
    compared = networks(budget)
    runs = tuned_training.train_tuned(workdir, budget, compared, BUDGETS[budget], data_dir)
    return results.Results(
        conditions={**runs.conditions, "seeds": BUDGETS[budget].seeds},
        rows=[*runs.tuning, *runs.final],
        tables=[tuned_training.accuracy_table(runs, compared)],
        pictures={"accuracy": tuned_training.accuracy_figure(runs, compared)},
    )


if __name__ == "__main__":
    command.run("batch_scaling", __doc__, study)
