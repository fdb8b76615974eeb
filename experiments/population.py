"""Trains a population: many runs of one network that differ in seed, rate, threshold and decay.

Small networks leave an accelerator idle, so the runs of a population are one program there:
``jax.vmap`` over the runs of a device, ``jax.pmap`` over devices. The images stay on the devices,
an epoch is one ``lax.scan``, and the device draws order and augmentation. A CPU is not idle, so
each of its devices, one a core (``process.use_cores_as_devices``), trains one run at a time.

A run's randomness comes from its seed alone: alone and in any population it is the same run, but
for rounding. A run whose loss is not finite keeps its state from there on and is reported.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from nfnets_jax import optax_agc
from nfnets_jax.data.keyed_augmentation import KeyedAugmentation
from nfnets_jax.data.normalization import normalize
from nfnets_jax.data.sources import ArraySource, Dataset
from nfnets_jax.devices import AXIS, replicate
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model
from nfnets_jax.training import objective
from nfnets_jax.training.units import UNIT_AXES

# Images that an accelerator takes at once, of all its runs together: the memory of their
# activations, not the idle cores, limits a population of wide batches.
_IMAGES_AT_ONCE = 2**15
_TEST_BATCH = 500
_SECONDS_BETWEEN_REPORTS = 20


class Run(NamedTuple):
    """What a run has of its own; all but the seed enter the compiled program as numbers.

    Attributes:
      seed: decides the initial parameters, the order of the images and their augmentation.
      learning_rate: at its peak.
      clipping: threshold of AGC; 0 for none.
      weight_decay: of kernels.
      momentum: decay of the accumulated gradient, Nesterov's.
    """

    seed: int
    learning_rate: float
    clipping: float = 0.0
    weight_decay: float = 5e-4
    momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class Task:
    """What all runs of a population have in common.

    Attributes:
      model: the network. Batch normalization takes its statistics from the whole batch.
      batch_size: images of a step.
      steps: updates of each run.
      warmup_steps: of them, those in which the learning rate rises linearly from 0.
      decays: whether the learning rate then falls to 0 by a cosine, or stays.
      label_smoothing: of the loss.
      augmentation: of the training images.
    """

    model: Model
    batch_size: int
    steps: int
    warmup_steps: int = 0
    decays: bool = True
    label_smoothing: float = 0.0
    augmentation: KeyedAugmentation = KeyedAugmentation()  # noqa: RUF009, it is immutable

    def schedule(self, step: jax.typing.ArrayLike) -> Any:
        """Returns the learning rate of a step over that of the peak."""
        rise = optax.linear_schedule(0.0, 1.0, self.warmup_steps)
        if not self.decays:
            return rise(step) if self.warmup_steps else 1.0
        fall = optax.cosine_decay_schedule(1.0, max(1, self.steps - self.warmup_steps))
        return optax.join_schedules([rise, fall], [self.warmup_steps])(step)


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


class _State(NamedTuple):
    """Parameters, running statistics and momenta of a run, and the step at which it diverged."""

    params: Any
    model_state: Any
    opt_state: Any
    diverged_at: jax.Array  # The number of steps if it did not.


class _Data(NamedTuple):
    images: Any
    labels: Any
    test_images: Any
    test_labels: Any


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
      runs: at most ``at_once`` of them are fast.
      devices: of this host; all by default.

    Returns:
      What became of each run, in their order.

    Raises:
      InputError: the images are not in memory, or fewer than a batch.
    """
    devices = list(devices or jax.local_devices())
    each = math.ceil(len(runs) / len(devices))
    data = _data(dataset)
    steps_per_epoch = len(data.labels) // task.batch_size
    if not steps_per_epoch:
        raise InputError(
            f"a batch of {task.batch_size} images from {len(data.labels)}: use a smaller batch"
        )
    epoch_steps = min(task.steps, steps_per_epoch)
    grouped = _by_device(runs, len(devices), each)
    held = replicate(data, devices)
    program = _program(task, dataset.mean, dataset.std, epoch_steps, each > 1, tuple(devices))

    state = program.start(grouped, held)
    epoch = program.epoch.lower(grouped, held, state, _first(devices, 0)).compile()
    begin, reported, losses = time.monotonic(), time.monotonic(), []
    for first in range(0, task.steps, epoch_steps):
        state, some = epoch(grouped, held, state, _first(devices, first))
        losses.append(_by_run(some))
        now, done = time.monotonic(), min(first + epoch_steps, task.steps)
        if now - reported > _SECONDS_BETWEEN_REPORTS:
            left = (now - begin) / done * (task.steps - done)
            last = np.array2string(losses[-1][: len(runs), -1], precision=3)
            print(f"  step {done} of {task.steps}, losses {last}, {left:.0f} s left", flush=True)
            reported = now
        if np.all(_by_run(state.diverged_at) < task.steps):
            break  # None is left to train.
    seconds = time.monotonic() - begin
    curves = np.concatenate(losses, axis=1)[:, : task.steps]
    diverged = _by_run(state.diverged_at)
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
    losses[: len(curve)] = curve
    speed = min(task.steps, diverged_at + 1) * task.batch_size / seconds
    if diverged_at < task.steps:
        return Outcome(losses, math.nan, diverged_at, speed)
    return Outcome(losses, top1, None, speed)


class _Program(NamedTuple):
    """A population's functions, each a ``jax.pmap``.

    Attributes:
      start: ``(runs, data) -> state``.
      epoch: ``(runs, data, state, first) -> (state, losses)``; trains the steps from ``first`` on.
      test: ``(data, state) -> top1``.
    """

    start: Callable[..., Any]
    epoch: Any
    test: Callable[..., Any]


@functools.lru_cache(maxsize=1)  # The programs of dozens of tasks would fill the memory.
def _program(
    task: Task,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    epoch_steps: int,
    several: bool,
    devices: tuple[jax.Device, ...],
) -> _Program:
    """Makes the functions of a task; ``several`` says whether a device has more than one run."""
    # XLA's CPU backend has only slow gradients of convolutions inside loops.
    policy = dataclasses.replace(task.model.policy, in_loop=True)
    model = task.model.with_policy(policy)

    def keys(run: Run) -> tuple[jax.Array, jax.Array, jax.Array]:
        init, order, draws = jax.random.split(jax.random.key(run.seed), 3)
        return init, order, draws

    def start(run: Run, data: _Data) -> _State:
        params, model_state = model.init(keys(run)[0], jnp.zeros((1, *data.images.shape[1:])))
        params, model_state = model.stacked(params), model.stacked(model_state)
        optimizer = _optimizer(task, run)
        return _State(params, model_state, optimizer.init(params), jnp.int32(task.steps))

    def loss_fn(params: Any, model_state: Any, key: jax.Array, batch: dict[str, jax.Array]) -> Any:
        images = normalize(batch["image"], mean, std)
        outputs, model_state = model.apply(params, model_state, key, images, True)

        def cross_entropy(labels: jax.Array) -> jax.Array:
            return objective.cross_entropy(outputs["logits"], labels, task.label_smoothing)

        return jnp.mean(objective.over_labels(cross_entropy, batch)), model_state

    def epoch(run: Run, data: _Data, state: _State, first: jax.Array) -> tuple[_State, jax.Array]:
        _, order_key, draws_key = keys(run)
        order = jax.random.permutation(jax.random.fold_in(order_key, first), len(data.labels))
        optimizer = _optimizer(task, run)

        def update(state: _State, index: jax.Array) -> tuple[_State, jax.Array]:
            places = lax.dynamic_slice(order, (index * task.batch_size,), (task.batch_size,))
            augment_key, network_key = jax.random.split(
                jax.random.fold_in(draws_key, first + index)
            )
            batch = task.augmentation(augment_key, data.images[places], data.labels[places])
            (loss, model_state), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params, state.model_state, network_key, batch
            )
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            diverged_at = jnp.where(jnp.isfinite(loss), state.diverged_at, first + index)
            return _State(params, model_state, opt_state, diverged_at), loss

        def keep(state: _State, index: jax.Array) -> tuple[_State, jax.Array]:
            return state, jnp.float32(jnp.nan)

        def step(state: _State, index: jax.Array) -> tuple[_State, jax.Array]:
            # Diverged runs have a step before this one; the last epoch may be shorter.
            is_live = (first + index < task.steps) & (first + index <= state.diverged_at)
            return lax.cond(is_live, update, keep, state, index)

        return lax.scan(step, state, jnp.arange(epoch_steps))

    def test(data: _Data, state: _State) -> jax.Array:
        count = len(data.test_labels)
        size = min(_TEST_BATCH, count)

        def correct(places: jax.Array) -> jax.Array:
            images = normalize(data.test_images[places], mean, std)
            outputs, _ = model.apply(state.params, state.model_state, None, images, False)
            hits = objective.in_top_k(outputs["logits"], data.test_labels[places], 1)
            return jnp.sum(hits * (places < count))

        places = jnp.arange(math.ceil(count / size) * size).reshape(-1, size)
        return jnp.sum(lax.map(correct, places)) / count

    def on_devices(function: Callable[..., Any], by_run: tuple[int | None, ...]) -> Any:
        # Of a single run, ``lax.cond`` skips what ``jax.vmap`` would compute and not select.
        over_runs = jax.vmap if several else _over_one
        return jax.pmap(over_runs(function, by_run), AXIS, devices=devices)

    return _Program(
        on_devices(start, (0, None)),
        on_devices(epoch, (0, None, 0, None)),
        on_devices(test, (None, 0)),
    )


def _optimizer(task: Task, run: Run) -> optax.GradientTransformation:
    return optax_agc.sgd_agc(
        lambda step: run.learning_rate * task.schedule(step),
        momentum=run.momentum,
        weight_decay=run.weight_decay,
        # No gradient is longer than infinity.
        clipping=jnp.where(run.clipping > 0, run.clipping, jnp.inf),
        unit_axes=UNIT_AXES,
    )


def _data(dataset: Dataset) -> _Data:
    arrays: list[np.ndarray] = []
    for source in (dataset.train, dataset.test or dataset.train):
        if not isinstance(source, ArraySource):
            raise InputError("a population trains on images in memory, and these are not")
        arrays += [source.images, source.labels.astype(np.int32)]
    return _Data(*arrays)


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


def _first(devices: Sequence[jax.Device], first: int) -> chex.Array:
    return np.full(len(devices), first, np.int32)


def _over_one(function: Callable[..., Any], by_run: Sequence[int | None]) -> Callable[..., Any]:
    """Does what ``jax.vmap`` does, for axes of length 1."""

    def over_one(*args: Any) -> Any:
        inner = [
            arg if axis is None else jax.tree.map(lambda x: x[0], arg)
            for arg, axis in zip(args, by_run, strict=True)
        ]
        return jax.tree.map(lambda x: x[None], function(*inner))

    return over_one


def _by_run(array: jax.Array) -> np.ndarray:
    """Returns ``[runs, ...]`` from ``[devices, runs of a device, ...]``."""
    return np.asarray(array).reshape(-1, *array.shape[2:])
