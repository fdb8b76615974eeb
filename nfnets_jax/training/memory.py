"""Compiling the update with the largest micro-batches that fit the devices' memory."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from nfnets_jax.data.resident import Stride
from nfnets_jax.devices import DeviceBatch, local_devices
from nfnets_jax.training import hosts
from nfnets_jax.training.experiment import Experiment
from nfnets_jax.training.step import Metrics, TrainState, examples_per_device, make_update

# Share of a device's memory for the update; the rest is for what the compiler does not count.
_USABLE_SHARE = 0.9


class Compilation(NamedTuple):
    """A compiled update.

    Attributes:
      update: the ``jax.pmap``.
      program: what it compiles to.
      micro_batch_size: images per device and forward pass.
      fits: whether the program fits the memory, by the compiler's plan.
    """

    update: Any
    program: Any
    micro_batch_size: int
    fits: bool


def compile_update(
    experiment: Experiment,
    state: TrainState,
    batch: DeviceBatch | Stride,
    log: Callable[[str], None],
) -> Callable[[TrainState, DeviceBatch | Stride], tuple[TrainState, Metrics]]:
    """Compiles the update of an experiment.

    The micro-batch size is ``config.micro_batch_size`` or, if that is 0, the largest divisor of
    each device's part of the batch whose update fits the memory of every device.

    Args:
      experiment: the experiment.
      state: a replicated state; only the shapes matter.
      batch: a batch from ``devices.transfer``, or a stride of them; only the shapes matter.
      log: called with one line if the micro-batches are smaller than the device's part.
    """
    memory = _smallest_memory(experiment.devices)
    compilation = compile_to_fit(experiment, state, batch, memory)
    examples, size = examples_per_device(batch), compilation.micro_batch_size
    if size < examples:
        log(f"each device splits its {examples} images of a batch into micro-batches of {size}")
    # A compiled pmap takes the arrays of all hosts, but each host holds only its own.
    return compilation.program if jax.process_count() == 1 else compilation.update


def compile_to_fit(
    experiment: Experiment,
    state: TrainState,
    batch: DeviceBatch | Stride,
    memory: float,
    log: Callable[[str], None] = lambda _: None,
) -> Compilation:
    """Compiles the update of an experiment with the largest micro-batches that fit.

    Args:
      experiment, state, batch: as ``compile_update`` takes them.
      memory: bytes of a device.
      log: called with one line for each size that does not fit.

    Returns:
      The update of ``config.micro_batch_size`` or, if that is 0, of the largest divisor of each
      device's part of the batch that fits; of the smallest if none does. Divisors that surely do
      not fit, as temporary memory grows with the images, are not tried.

    Raises:
      jax.errors.JaxRuntimeError: the compiler refuses even the smallest.
    """
    config, model = experiment.config, experiment.model
    if isinstance(batch, Stride):
        model = model.with_policy(dataclasses.replace(model.policy, in_loop=True))
    examples = examples_per_device(batch)
    sizes = [size for size in range(examples, 0, -1) if examples % size == 0]
    if config.micro_batch_size:
        sizes = [config.micro_batch_size]
    while True:
        size = sizes.pop(0)
        update: Any = make_update(
            model,
            experiment.optimizer,
            experiment.dataset,
            label_smoothing=config.label_smoothing,
            ema_decay=config.ema_decay,
            devices=experiment.devices,
            micro_batch_size=size,
            sam=experiment.sam,
            clipping_stats=experiment.clipping_stats,
            task=experiment.task,
        )
        try:
            program = update.lower(state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            # Compilers of TPUs refuse a program that does not fit.
            if "RESOURCE_EXHAUSTED" not in str(error) or not sizes:
                raise
            log(f"{size} images at a time do not fit")
            continue
        needed = planned_bytes(program)
        fits = needed <= _USABLE_SHARE * memory
        if fits or not sizes:
            break
        log(f"{size} images at a time take {needed / 1e9:.1f} GB")
        # Temporaries shrink at most in proportion to the images; a fifth more is left to doubt.
        fixed = program.memory_analysis().argument_size_in_bytes
        most = 1.2 * size * (_USABLE_SHARE * memory - fixed) / (needed - fixed)
        sizes = [size for size in sizes if size <= most] or sizes[-1:]
    return Compilation(update, program, size, fits)


def planned_bytes(compiled: Any) -> int:
    """Returns the peak memory that the compiler plans for a program, or 0 if it is unknown."""
    plan = compiled.memory_analysis()
    if plan is None:  # Some backends do not report it.
        return 0
    return (
        plan.temp_size_in_bytes
        + plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
    )


def _smallest_memory(devices: list[jax.Device]) -> float:
    """Returns the bytes of the smallest device of all hosts; a host's CPU devices share its RAM."""
    local = local_devices(devices)
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(local)
    smallest = min((device.memory_stats() or {}).get("bytes_limit", ram) for device in local)
    return hosts.smallest(smallest)
