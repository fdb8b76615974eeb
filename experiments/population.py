"""Trains a population: many runs of one network that differ in seed, rate, threshold and decay.

Small networks leave an accelerator idle, so the runs of a population are one program there:
``jax.vmap`` over the runs of a device, ``jax.pmap`` over devices. The images stay on the devices,
an epoch is one ``lax.scan``, and the device draws order and augmentation. A CPU is not idle, so
each of its devices, one a core (``process.use_cores_as_devices``), trains one run at a time.

A run's randomness comes from its seed alone: alone and in any population it is the same run, but
for rounding. A run whose loss is not finite stops there and is reported.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nfnets_jax.data.sources import ArraySource, Dataset
from nfnets_jax.devices import AXIS, replicate
from nfnets_jax.errors import InputError

from .pure_run import Images, PureRun, Run, Task

# Images that an accelerator takes at once, of all its runs together: the memory of their
# activations, not the idle cores, limits a population of wide batches.
_IMAGES_AT_ONCE = 2**15
_SECONDS_BETWEEN_REPORTS = 20


class Outcome(NamedTuple):
    """What became of a run.

    Attributes:
      losses: of each training step, ``[steps]`` float32; NaN from the divergence on.
      top1: share of the test images that are classified rightly; NaN if the run diverged, or if
        there are none.
      diverged_at: the first step, from 0 on, whose loss was not finite; None if there was none.
      images_per_second: that the run trained on, without compilation. Runs side by side share
        their processor.
    """

    losses: np.ndarray
    top1: float
    diverged_at: int | None
    images_per_second: float


def at_once(task: Task, devices: Sequence[jax.Device] | None = None) -> int:
    """Returns how many runs of a task should be trained together, on all devices by default."""
    devices = devices or jax.local_devices()
    is_cpu = devices[0].platform == "cpu"
    return len(devices) * (1 if is_cpu else max(1, _IMAGES_AT_ONCE // task.batch_size))


def train(
    task: Task, dataset: Dataset, runs: Sequence[Run], devices: Sequence[jax.Device] | None = None
) -> list[Outcome]:
    """Trains runs together and tests each; prints progress and the time left.

    Args:
      task: what the runs have in common.
      dataset: images in memory, of one size; ``hold_out`` makes test images of training images.
        There may be none to test on.
      runs: their numbers; ``at_once`` says how many make the best use of the devices.
      devices: of this host; all by default.

    Returns:
      What became of each run, in their order.

    Raises:
      InputError: the images are not in memory, or fewer than a batch.
    """
    devices = list(devices or jax.local_devices())
    each = math.ceil(len(runs) / len(devices))
    data = _images(dataset)
    if len(data.labels) < task.batch_size:
        raise InputError(
            f"a batch of {task.batch_size} images from {len(data.labels)}: use a smaller batch"
        )
    epoch_steps = min(task.steps, len(data.labels) // task.batch_size)
    program = _program(
        PureRun(task, dataset.mean, dataset.std, epoch_steps), each > 1, tuple(devices)
    )

    numbers, held = _by_device(runs, len(devices), each), replicate(data, devices)
    state = program.start(numbers, held)
    first_step = np.zeros(len(devices), np.int32)
    epoch = program.epoch.lower(numbers, held, state, first_step).compile()
    begin = reported = time.monotonic()
    losses: list[np.ndarray] = []
    for first in range(0, task.steps, epoch_steps):
        state, some = epoch(numbers, held, state, first_step + first)
        losses.append(_by_run(some))
        now, done = time.monotonic(), min(first + epoch_steps, task.steps)
        if now - reported > _SECONDS_BETWEEN_REPORTS:
            left = (now - begin) / done * (task.steps - done)
            means = np.array2string(losses[-1][: len(runs)].mean(axis=1), precision=3)
            print(f"  step {done} of {task.steps}, losses {means}, {left:.0f} s left", flush=True)
            reported = now
        if np.all(_by_run(state.diverged_at) < task.steps):
            break  # None is left to train.
    seconds = time.monotonic() - begin

    curves, diverged = np.concatenate(losses, axis=1), _by_run(state.diverged_at)
    top1 = np.full(len(diverged), np.nan)
    if dataset.test is not None:
        top1 = _by_run(program.test(held, state))
    return [
        _outcome(task, curves[place], float(top1[place]), int(diverged[place]), seconds)
        for place in range(len(runs))
    ]


def _outcome(
    task: Task, curve: np.ndarray, top1: float, diverged_at: int, seconds: float
) -> Outcome:
    losses = np.full(task.steps, np.nan, np.float32)
    losses[:diverged_at] = curve[:diverged_at]
    speed = min(task.steps, diverged_at + 1) * task.batch_size / seconds
    if diverged_at < task.steps:
        return Outcome(losses, math.nan, diverged_at, speed)
    return Outcome(losses, top1, None, speed)


class _Program(NamedTuple):
    """The functions of ``PureRun`` over all runs, each a ``jax.pmap``.

    Every argument and result has an axis of devices; those of runs then have an axis of the runs of
    a device.
    """

    start: Callable[..., Any]
    epoch: Any
    test: Callable[..., Any]


@functools.lru_cache(maxsize=1)  # The programs of dozens of tasks would fill the memory.
def _program(run: PureRun, several: bool, devices: tuple[jax.Device, ...]) -> _Program:
    """Maps the functions; ``several`` says whether a device has more than one run."""

    def over_all(function: Callable[..., Any], by_run: tuple[int | None, ...]) -> Any:
        # Of a single run, ``lax.cond`` skips what ``jax.vmap`` would compute and not select.
        over_runs = jax.vmap if several else _over_one
        return jax.pmap(over_runs(function, by_run), AXIS, devices=devices)

    return _Program(
        over_all(run.start, (0, None)),
        over_all(run.epoch, (0, None, 0, None)),
        over_all(run.test, (None, 0)),
    )


def _over_one(function: Callable[..., Any], by_run: Sequence[int | None]) -> Callable[..., Any]:
    """Does what ``jax.vmap`` does, for axes of length 1."""

    def over_one(*args: Any) -> Any:
        inner = [
            arg if axis is None else jax.tree.map(lambda x: x[0], arg)
            for arg, axis in zip(args, by_run, strict=True)
        ]
        return jax.tree.map(lambda x: x[None], function(*inner))

    return over_one


def _images(dataset: Dataset) -> Images:
    arrays: list[np.ndarray] = []
    for source in (dataset.train, dataset.test or dataset.train):
        if not isinstance(source, ArraySource):
            raise InputError(
                "these images are not in memory, as a population takes them: use a smaller dataset"
            )
        arrays += [source.images, source.labels.astype(np.int32)]
    return Images(*arrays)


def _by_device(runs: Sequence[Run], devices: int, each: int) -> Run:
    """Returns the numbers of the runs as arrays ``[devices, each]``, the last run as often again.

    Fewer devices, or whole numbers among the rates, would be another program to compile.
    """
    padded = [*runs, *[runs[-1]] * (devices * each - len(runs))]
    dtypes: Any = {"seed": np.uint32}
    arrays: dict[str, Any] = {
        name: np.array(values, dtypes.get(name, np.float32)).reshape(devices, each)
        for name, values in zip(Run._fields, zip(*padded, strict=True), strict=True)
    }
    return Run(**arrays)


def _by_run(array: jax.Array) -> np.ndarray:
    """Returns ``[runs, ...]`` from ``[devices, runs of a device, ...]``."""
    return np.asarray(array).reshape(-1, *array.shape[2:])
