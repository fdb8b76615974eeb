"""Measures what mixing and RandAugment cost on the device, beside a training step.

    python -m benchmarks.augmentation --target=h100   # compiles for a GPU that is not there
    python -m benchmarks.augmentation                 # times a batch on this machine's device

Prints a line of JSON. With ``--target``, ``augmentation`` counts the kernels and bytes that the
training step has more of when the device augments than when the host does, and ``step`` those of
the latter; ``share_of_bytes`` is the ratio. Without it, ``seconds`` is the time of one batch.
"""

import argparse
import json
import statistics
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks import machine
from experiments import configs, plan, program
from experiments.targets import Target, open_target
from nfnets_jax.data import on_device
from nfnets_jax.errors import InputError
from nfnets_jax.training.experiment import build_experiment


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="nfnet_f0", help="as experiments.run takes it")
    parser.add_argument("--batch", type=int, default=256, help="images a step, on one device")
    parser.add_argument("--target", help="a GPU, as experiments.plan takes it")
    parser.add_argument("--steps", type=int, default=20, help="timed batches, after two untimed")
    arguments = parser.parse_args()
    try:
        target = open_target(arguments.target) if arguments.target else None
        config = configs.get_config(arguments.config)
        config.batch_size = arguments.batch
        figures = compare(config, target) if target else measure(config, arguments.steps)
        print(json.dumps({**vars(arguments), **figures}))
    except InputError as error:
        sys.exit(f"error: {error}")


def compare(config: ConfigDict, target: Target) -> dict[str, Any]:
    """Returns what the step of a target does, and what augmenting on the device adds to it."""
    counts = {}
    for wanted in ("no", "yes"):
        config.augment.on_device = wanted
        figures, hlo = plan.plan(config, target, num_classes=1000)
        kernels = program.count_kernels(hlo)
        counts[wanted] = {
            "kernels": sum(kernel.runs for kernel in kernels),
            "bytes": program.moved_bytes(kernels),
            "temporary_bytes": figures["temporary_bytes"],
        }
    step, with_augmentation = counts["no"], counts["yes"]
    added = {name: with_augmentation[name] - figure for name, figure in step.items()}
    return {
        "augmentation": added,
        "step": step,
        "share_of_bytes": added["bytes"] / step["bytes"],
    }


def measure(config: ConfigDict, steps: int) -> dict[str, Any]:
    """Times a batch of generated images on this machine's first device."""
    config.update({"data": {"name": "synthetic"}, "augment": {"on_device": "yes"}})
    batch: Any = build_experiment(config, jax.devices()[:1]).train_batches[0]
    del batch["unreadable"]
    arrays = jax.device_put(batch)
    compilation = machine.compilation(jax.jit(on_device.augment), arrays)

    def run() -> Any:
        return compilation.run(arrays)["image"]

    machine.seconds(run, 2)
    seconds = statistics.median(machine.seconds(run, steps))
    return {
        "seconds": seconds,
        "images_per_second": len(batch["label"]) / seconds,
        "compile_seconds": compilation.seconds,
        **machine.describe(),
    }


if __name__ == "__main__":
    main()
