"""An update that fits the devices: how many images they work on at once."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nfnets_jax.training.experiment import Plan
from nfnets_jax.training.step import DeviceBatch, TrainState, local, make_update

# Of a device's memory; the rest is for what the plan of the compiler does not hold.
_SHARE = 0.9


def compile_update(
    plan: Plan, state: TrainState, batch: DeviceBatch, tell: Callable[[str], None]
) -> Callable[[TrainState, DeviceBatch], Any]:
    """Compiles the update of a run.

    The size of its micro-batches is ``config.micro_batch_size`` or, for 0, the largest that, by the
    compiler's own plan, fits the memory of all devices.

    Args:
      plan: of the run.
      state, batch: what the update will be given, for their shapes.
      tell: is given a line if the batch is taken in parts.
    """
    config = plan.config
    examples = batch["image"].shape[1]
    sizes = [n for n in range(examples, 0, -1) if examples % n == 0]
    if config.micro_batch_size:
        sizes = [config.micro_batch_size]
    available = _SHARE * _smallest_memory(plan.devices)
    for size in sizes:
        update: Any = make_update(
            plan.model,
            plan.optimizer,
            plan.dataset,
            label_smoothing=config.label_smoothing,
            ema_decay=config.ema_decay,
            devices=plan.devices,
            micro_batch_size=size,
            sam=plan.sam,
            look=plan.look,
        )
        compiled = update.lower(state, batch).compile()
        if planned_bytes(compiled) <= available:
            break
    if size < examples:
        tell(f"each device takes its {examples} images of a batch in parts of {size}")
    # What is compiled ahead takes the arrays of all hosts, and each host has its own alone.
    return compiled if jax.process_count() == 1 else update


def planned_bytes(compiled: Any) -> int:
    """Most bytes that a compiled function has in use at once, by the compiler's plan, or 0."""
    plan = compiled.memory_analysis()
    if plan is None:
        return 0  # The backend does not tell.
    return (
        plan.temp_size_in_bytes
        + plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
    )


def _smallest_memory(devices: list[jax.Device]) -> float:
    """Bytes of the device that has least, over all hosts; a CPU's devices share the machine's."""
    here = local(devices)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(here)
    least = min((device.memory_stats() or {}).get("bytes_limit", machine) for device in here)
    return float(np.min(multihost_utils.process_allgather(np.float32(least))))
