"""Tests whether NFNets owe their accuracy to their architecture or to AGC.

NFNets (Brock et al. 2021b, arXiv:2102.06171) claim that AGC changes little at small batches and
lets networks train at large ones (section 4.1), and that their architecture improves on
SE-ResNeXt-D at a similar cost (section 5).

    python -m experiments.studies.architecture_or_clipping --budget=cpu --data_dir=TFDS_DIR

Design: an SE-ResNeXt-D without normalization and an NFNet with as many multiply-adds, each without
AGC and with it, and the SE-ResNeXt-D with batch normalization learn CIFAR-10 at two batch sizes.
The NFNet differs in depths, widths and a second 3x3 convolution. Learning rates are tuned as
``tuned_training`` describes. At the larger batch the threshold of AGC is varied too, with one seed.
Without ``--data_dir`` the networks learn the embedded digits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import command, results, tuned_training
from .tuned_training import Budget, Network

BUDGETS = {
    "smoke": Budget(0.1, (32,), (0.2,), seeds=1, image_size=8),
    "cpu": Budget(1, (64, 1024), (0.05, 0.2, 0.8), seeds=3, image_size=16),
    "gpu": Budget(30, (256, 4096), (0.025, 0.05, 0.1, 0.2, 0.4, 0.8), seeds=3),
}
CLIPPING = 0.01
THRESHOLDS = {"smoke": (0.01, 0.04), "cpu": (0.0025, 0.01, 0.04), "gpu": (0.0025, 0.01, 0.04, 0.16)}
_NORMALIZED, _UNNORMALIZED, _NFNET = "SE-ResNeXt-D, batch-normalized", "SE-ResNeXt-D", "NFNet"
_MODELS = {
    _NORMALIZED: ("seresnext26d_small", "C7"),
    _UNNORMALIZED: ("nf_seresnext26d_small", "C0"),
    _NFNET: ("nfnet_tiny", "C1"),
}
# Overrides that make the multiply-adds of all three about equal.
_TINY = {"width": (16,), "depth": (1,)}
_OVERRIDES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "smoke": {
        _NORMALIZED: {**_TINY, "groups": 1},
        _UNNORMALIZED: {**_TINY, "strides": (1,), "stem": ((16, 1),), "group_size": 8},
        _NFNET: {**_TINY, "strides": (1,), "stem": ((8, 1), (8, 1)), "group_size": 8},
    },
    "cpu": {
        _NORMALIZED: {"width": (16, 24, 48, 96), "groups": 1},
        _UNNORMALIZED: {"width": (16, 32, 64, 128), "stem": ((16, 1),), "group_size": 8},
        _NFNET: {
            "width": (16, 32, 72, 72),
            "depth": (1, 1, 2, 1),
            "stem": ((8, 1), (8, 1)),
            "group_size": 8,
        },
    },
    "gpu": {
        _NORMALIZED: {},
        _UNNORMALIZED: {},
        _NFNET: {"width": (64, 128, 320, 320), "depth": (1, 1, 2, 1), "group_size": 16},
    },
}


def networks(budget: str) -> dict[str, Network]:
    """Returns the networks that are compared, by name."""
    return {
        **_clipped(budget, _NORMALIZED, (0.0,)),
        **_clipped(budget, _UNNORMALIZED, (0.0, CLIPPING)),
        **_clipped(budget, _NFNET, (0.0, CLIPPING)),
    }


def thresholds(budget: str) -> dict[str, Network]:
    """Returns the networks that are trained with each threshold of AGC, by name."""
    return {
        **_clipped(budget, _UNNORMALIZED, THRESHOLDS[budget]),
        **_clipped(budget, _NFNET, THRESHOLDS[budget]),
    }


def _clipped(budget: str, name: str, clippings: tuple[float, ...]) -> dict[str, Network]:
    model, color = _MODELS[name]
    return {
        f"{name}, AGC {clipping:g}" if clipping else name: Network(
            model, color, clipping, _OVERRIDES[budget][name]
        )
        for clipping in clippings
    }


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Trains the networks at each batch size, then varies the threshold at the largest."""
    design, compared, varied = BUDGETS[budget], networks(budget), thresholds(budget)
    runs = tuned_training.train_tuned(workdir, budget, compared, design, data_dir)
    largest = design._replace(batch_sizes=design.batch_sizes[-1:], seeds=1)
    varied_runs = tuned_training.train_tuned(workdir, budget, varied, largest, data_dir)

    rows = [*runs.tuning, *runs.final]
    # The runs with the first part's threshold belong to both parts.
    rows += [row for row in [*varied_runs.tuning, *varied_runs.final] if row not in rows]
    return results.Results(
        conditions={**runs.conditions, "seeds": design.seeds},
        rows=rows,
        tables=[
            tuned_training.accuracy_table(runs, compared),
            tuned_training.accuracy_table(
                varied_runs, varied, "Thresholds of AGC at the largest batch, test top-1"
            ),
        ],
        pictures={"accuracy": tuned_training.accuracy_figure(runs, compared)},
    )


if __name__ == "__main__":
    command.run("architecture_or_clipping", __doc__, study)
