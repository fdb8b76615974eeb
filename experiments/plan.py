"""Plans a run for accelerators that are not there: does it fit, and what will a step do?

    python -m experiments.plan --config=nfnet_f0 --target=h100 --config.batch_size=256
    python -m experiments.plan --config=nfnet_f0 --target=v4:4x4x4 --config.batch_size=4096 --json

It compiles the run's training step with the target's own compiler, which needs no device: install
``'.[train,cuda]'`` or ``'.[train,tpu]'`` in an environment of its own. Targets are a100, h100 and
h200, ``8xh100`` for eight on one host, and TPUs with their topology of chips. No data are opened:
images of 1000 classes are assumed, and ``--num_classes`` changes that. A TFDS dataset whose images
are already cut (``data.crop`` pad) is assumed to be 50,000 images in memory, so that the devices
may hold it. Exit codes: 0; 1, with one line that says why.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from nfnets_jax.atomic import atomic_write_for_user
from nfnets_jax.data.normalization import mean_and_std
from nfnets_jax.data.sources import ArraySource, open_dataset
from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.counting import summarize
from nfnets_jax.training.experiment import Experiment, build_experiment
from nfnets_jax.training.memory import Compilation, compile_to_fit
from nfnets_jax.training.step import examples_per_device

from . import program, run
from .projects import import_projects
from .targets import Target, open_target

# Images of a small dataset that is not opened, as CIFAR-10 has them.
_SMALL_DATASET = 50_000

_TARGET = flags.DEFINE_string("target", None, "h100, 8xh100, v4:4x4x4, v5e:4x4 ...")
_CLASSES = flags.DEFINE_integer("num_classes", 1000, "Classes of data that are not at hand.")
_JSON = flags.DEFINE_bool("json", False, "One JSON object on one line.")
_HLO = flags.DEFINE_string("hlo", "", "File for the optimized program.")


def main(argv: Sequence[str]) -> None:
    """Plans the configuration on the command line."""
    if argv[1:]:
        sys.exit(f"error: {argv[1]!r} is no flag; see --help")
    try:
        if not _TARGET.value:
            raise InputError("no target: give --target, such as h100 or v4:4x4x4")
        if _CLASSES.value < 1:
            raise InputError(f"--num_classes is {_CLASSES.value}; it takes a number from 1 on")
        target = open_target(_TARGET.value)
        config = flags.FLAGS.config
        import_projects(config.get("imports", ()))
        figures, hlo = plan(config, target, _CLASSES.value)
        print(json.dumps(figures) if _JSON.value else as_text(figures), flush=True)
        if _HLO.value:
            with atomic_write_for_user(Path(_HLO.value)) as partial:
                partial.write_text(hlo, encoding="utf-8")
    except InputError as error:
        sys.exit(f"error: {error}")


def plan(config: ConfigDict, target: Target, num_classes: int) -> tuple[dict[str, Any], str]:
    """Compiles the training step of a run for a target.

    Args:
      config: the run's configuration.
      target: the devices.
      num_classes: of the data, unless they are built in.

    Returns:
      The figures, by name, and the optimized program. ``argument_bytes``, ``temporary_bytes`` and
      ``collective_bytes`` are of one device, ``device_bytes`` is its memory; ``flops`` are those of
      the network's products in one step on all devices, without rematerialization. ``kernels`` and
      ``bytes`` count the fusions of a GPU's program. ``roofline_seconds`` is the time of a step in
      which a device works at the data sheet's rates: that of its products or of the bytes that its
      kernels move, whichever takes longer. ``remat`` is None for networks without the option.

    Raises:
      InputError: the configuration cannot be run on the target.
    """
    experiment = _build(config, target, num_classes)
    state, batch = _shapes(experiment)
    start = time.monotonic()
    try:
        compilation = compile_to_fit(experiment, state, batch, target.rates.memory, _log)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        size = config.micro_batch_size or 1
        raise InputError(
            f"a step with micro-batches of {size} does not fit {target.name}"
        ) from error
    seconds = time.monotonic() - start
    memory = compilation.program.memory_analysis()
    hlo = compilation.program.as_text()
    kernels = program.count_kernels(hlo)

    size, channels = config.data.image_size, experiment.dataset.channels
    forward = 2 * summarize(experiment.model, size, channels).work.multiply_adds
    flops = 3 * forward * config.batch_size * (1 + _ascent_share(experiment, batch, compilation))
    moved = program.moved_bytes(kernels)
    if target.backend != "gpu":  # Its program says more than the names of kernels.
        moved = int(compilation.program.cost_analysis()["bytes accessed"])
    figures: dict[str, Any] = {
        "model": config.model.name,
        "batch_size": config.batch_size,
        "image_size": size,
        "precision": config.precision,
        "remat": getattr(experiment.model.config, "remat", None),
        "micro_batch_size": compilation.micro_batch_size,
        "target": target.name,
        "devices": len(target.devices),
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "device_bytes": target.rates.memory,
        "fits": compilation.fits,
        "flops": flops,
        "collective_bytes": program.collective_bytes(kernels),
        "roofline_seconds": max(
            flops / len(target.devices) / target.rates.products[config.precision],
            moved / target.rates.bytes,
        ),
    }
    if target.backend == "gpu":
        figures["kernels"], figures["bytes"] = program.fusions(kernels)
    return figures, hlo


def as_text(figures: Mapping[str, Any]) -> str:
    """Returns the figures of ``plan`` as lines to read."""
    arguments, temporaries = figures["argument_bytes"], figures["temporary_bytes"]
    examples = figures["batch_size"] // figures["devices"]
    remat = f", remat {figures['remat']}" if figures["remat"] else ""
    lines = [
        f"{figures['model']} at {figures['image_size']} pixels, {figures['precision']}, on "
        f"{figures['target']} ({figures['devices']}): {examples} image{'s' * (examples > 1)} each, "
        f"{figures['micro_batch_size']} at a time{remat}; compiled in "
        f"{figures['compile_seconds']:.0f} s",
        f"memory     {'fits' if figures['fits'] else 'does not fit'}: state and batch "
        f"{arguments / 1e9:.2f} GB, temporaries {temporaries / 1e9:.2f} GB, of "
        f"{figures['device_bytes'] / 1e9:.1f} GB",
        f"products   {figures['flops'] / 1e12:.2f} TFLOP a step on all devices",
        f"exchanged  {figures['collective_bytes'] / 1e9:.3f} GB a step between devices",
    ]
    lines += [
        f"fusions    {number:,} of the {part}, {figures['bytes'][part] / 1e9:.2f} GB"
        for part, number in figures.get("kernels", {}).items()
    ]
    lines.append(
        f"roofline   {1000 * figures['roofline_seconds']:.1f} ms a step at least: dense "
        f"{figures['precision']} products and memory at the data sheet's rates, whichever takes "
        "longer; no exchange"
    )
    is_split = not figures["fits"] or figures["micro_batch_size"] < examples
    if is_split and figures["remat"] == "none":
        lines.append("larger micro-batches may fit with --config.model.remat=block")
    return "\n".join(lines)


def _build(config: ConfigDict, target: Target, num_classes: int) -> Experiment:
    """Returns the run's ``Experiment``, on the target, with images that need no files."""
    config = config.copy_and_resolve_references()
    config.init.weights = ""
    config.data.holdout = 0
    dataset = None
    if config.task.name == "classification" and config.data.name not in ("digits", "synthetic"):
        mean, std = mean_and_std(config.data.name)
        dataset = dataclasses.replace(
            open_dataset("synthetic", size=config.data.image_size),
            class_names=tuple(map(str, range(num_classes))),
            mean=mean,
            std=std,
        )
        if config.data.name.startswith("tfds:") and config.data.crop == "pad":
            shape = (_SMALL_DATASET, config.data.image_size, config.data.image_size, len(mean))
            images = np.broadcast_to(np.uint8(0), shape)  # Takes no memory.
            train = ArraySource(images, np.zeros(_SMALL_DATASET, np.int32))
            dataset = dataclasses.replace(dataset, train=train)
    return build_experiment(config, target.devices, dataset, Policy(backend=target.backend))


def _shapes(experiment: Experiment) -> tuple[Any, Any]:
    """Returns the shapes of state and batch, as ``jax.pmap`` has them on one host."""
    devices = len(experiment.devices)
    part = experiment.config.batch_size // devices
    batches = experiment.train_batches
    group = batches.examples.group_size
    examples = batches.part(0, 0, group)
    state = jax.eval_shape(lambda: experiment.model.stacked(experiment.create_state()))
    batch: Any = {
        name: jax.ShapeDtypeStruct((part * len(array) // group, *array.shape[1:]), array.dtype)
        for name, array in cast(dict[str, np.ndarray], examples).items()
        if name != "unreadable"
    }
    if experiment.resident:
        batch = experiment.resident.shapes(part, experiment.longest_stride)
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((devices, *array.shape), array.dtype), (state, batch)
    )


def _ascent_share(experiment: Experiment, batch: Any, compilation: Compilation) -> float:
    """Returns the share of the batch that SAM computes a first gradient of."""
    if experiment.sam is None:
        return 0.0
    examples = examples_per_device(batch)
    return experiment.sam.ascent_examples(examples, compilation.micro_batch_size) / examples


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=run.parse)
