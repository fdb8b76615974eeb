"""Measures what checkpoints and clipping statistics add to a run's steps; prints a line of JSON.

    python -m benchmarks.overheads --model=nfnet_f0 --batch=8 --size=192 --steps=10 --rounds=5

alternates rounds of plain steps, of steps of which the first starts a checkpoint, and of steps of
which the first measures clipping statistics. The cost of either is the median difference to the
plain round. ``checkpoint_share`` and ``look_share`` are their shares of a run's time with
``checkpoint_every`` and ``look_every`` at 100: two checkpoints and one measurement in 100 steps.
All steps take the same images of noise.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from benchmarks import machine
from nfnets_jax.devices import transfer
from nfnets_jax.training import recipes
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.experiment import Experiment, build_experiment
from nfnets_jax.training.memory import compile_update


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nfnet_f0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=10, help="enough to write a checkpoint in")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    config = recipes.small_images(arguments.model, "synthetic", arguments.size)
    config.update({"batch_size": arguments.batch, "num_devices": 1, "look_every": 1})
    with tempfile.TemporaryDirectory() as folder:
        experiment = build_experiment(config)
        figures = _measure(experiment, Path(folder), arguments.steps, arguments.rounds)
    print(json.dumps({**vars(arguments), **figures, **machine.describe()}))


def _measure(experiment: Experiment, folder: Path, steps: int, rounds: int) -> dict[str, float]:
    batch = {k: v for k, v in next(iter(experiment.train_batches)).items() if k != "unreadable"}
    on_devices = transfer(cast(dict[str, np.ndarray], batch), experiment.devices)
    state = experiment.to_devices(experiment.create_state())
    update, measuring = (
        compile_update(each, state, on_devices, print)
        for each in (dataclasses.replace(experiment, clipping_stats=None), experiment)
    )
    with contextlib.closing(Checkpoints(folder, keep=1)) as saved:

        def take(update: Callable[..., Any], save: int | None = None, look: bool = False) -> float:
            """Returns the seconds of a round, with a checkpoint or statistics on request."""
            nonlocal state
            start = time.perf_counter()
            for step in range(steps):
                state, metrics = (measuring if look and step == 0 else update)(state, on_devices)
                if step == 0 and save is not None:
                    saved.save(save, experiment.to_host(state), {})
            jax.block_until_ready(metrics)
            return time.perf_counter() - start

        take(update, save=0, look=True)  # The first checkpoint and measurement take longer.
        bare, saving, look = zip(
            *[
                (take(update), take(update, save=i), take(update, look=True))
                for i in range(1, rounds + 1)
            ],
            strict=True,
        )
    step = statistics.median(bare) / steps
    costs = {
        name: statistics.median(np.subtract(taken, bare))
        for name, taken in (("checkpoint", saving), ("look", look))
    }
    return {
        "step_seconds": step,
        "checkpoint_seconds": costs["checkpoint"],
        "checkpoint_share": 2 * costs["checkpoint"] / (100 * step),
        "look_seconds": costs["look"],
        "look_share": costs["look"] / (100 * step),
    }


if __name__ == "__main__":
    main()
