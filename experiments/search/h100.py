"""Counts what the training steps of a search's winner and of EfficientNet move on an H100.

    .venv-plan/bin/python -m experiments.search.h100 --budget=gpu --workdir=DIR

It compiles both steps as ``experiments.plan`` does, which needs its compilers and no GPU, and takes
minutes. DIR is that of a finished search; ``h100.md`` and ``h100.json`` are written there.
"""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

from nfnets_jax import register_model
from nfnets_jax.errors import InputError
from nfnets_jax.training import recipes
from nfnets_jax.training.reporting import write_atomically, write_json

from .. import commands, plan
from ..studies import results
from ..targets import Target, open_target
from .baselines import efficientnet_within
from .budgets import BUDGETS
from .family import MODULE, SMALL

_BASELINE = "efficientnet_small"
_BATCH, _CLASSES = 1024, 10


def main() -> None:
    """Compiles for the command line."""
    parser = commands.parser("search.h100", __doc__)
    parser.add_argument("--budget", default="gpu", choices=BUDGETS)
    parser.add_argument("--workdir", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        print(measure(arguments, open_target("h100")))
    except InputError as error:
        sys.exit(f"error: {error}")


def measure(arguments: argparse.Namespace, target: Target) -> str:
    """Compiles both steps, writes the figures and returns their table.

    Raises:
      InputError: the directory has no winner, or a network cannot be compiled.
    """
    module = arguments.workdir / MODULE
    if not module.exists():
        raise InputError(f"{module} is not there: a search writes it when it ends")
    runpy.run_path(str(module))  # Registers the winner.
    budget = BUDGETS[arguments.budget]
    baseline = efficientnet_within(budget.limits, budget.size, budget.shallow)
    register_model(_BASELINE, baseline)
    rows: list[dict[str, Any]] = []
    for name in (SMALL, _BASELINE):
        print(f"compiling {name}", file=sys.stderr, flush=True)
        config = recipes.small_images(name, "tfds:cifar10", budget.size)
        config.update({"batch_size": _BATCH, "precision": "bfloat16"})
        rows.append(plan.plan(config, target, _CLASSES)[0])
    table = results.table(
        f"A training step of {_BATCH} images on an H100, compiled and not run: gigabytes that the "
        "fusions of network and parameters move, and the least time by the data sheet's rates.",
        ("network", "network, GB", "parameters, GB", "roofline, ms"),
        [
            (
                row["model"],
                row["bytes"]["network"] / 1e9,
                row["bytes"]["parameters"] / 1e9,
                1000 * row["roofline_seconds"],
            )
            for row in rows
        ],
    )
    write_json(arguments.workdir / "h100.json", {"rows": rows})
    write_atomically(arguments.workdir / "h100.md", table + "\n")
    return table


if __name__ == "__main__":
    main()
