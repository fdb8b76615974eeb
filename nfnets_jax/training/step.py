"""One training step on several devices, by ``jax.pmap``."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from nfnets_jax import optax_agc
from nfnets_jax.data import on_device
from nfnets_jax.data.normalization import normalize
from nfnets_jax.data.resident import Stride
from nfnets_jax.data.sources import Dataset
from nfnets_jax.devices import AXIS, DeviceBatch
from nfnets_jax.models.registry import Model
from nfnets_jax.training.classification import CLASSIFICATION
from nfnets_jax.training.fusion import materialize, materialize_on_cpu
from nfnets_jax.training.sam import SAM, ascend
from nfnets_jax.training.task import Metrics, Task
from nfnets_jax.training.telemetry import ClippingStats
from nfnets_jax.training.units import UNIT_AXES


class TrainState(NamedTuple):
    """Everything that a training step changes, and the run's random key.

    Attributes:
      step: number of updates so far, int32 ``[]``.
      key: data of a random key, uint32 ``[2]``; the same for the whole run.
      params: ``{module: {parameter: float32 array}}``.
      model_state: running statistics in the same form; empty for most models.
      opt_state: state of the optimizer.
      ema_params: exponential moving average of ``params``.
      ema_model_state: the same of ``model_state``; None if it is not averaged.
    """

    step: chex.ArrayTree
    key: chex.ArrayTree
    params: chex.ArrayTree
    model_state: chex.ArrayTree
    opt_state: chex.ArrayTree
    ema_params: chex.ArrayTree
    ema_model_state: chex.ArrayTree | None = None


def create_state(
    model: Model, optimizer: optax.GradientTransformation, images_shape: Sequence[int], seed: int
) -> TrainState:
    """Creates an initial state on the default device.

    Args:
      model: the network.
      optimizer: the optimizer of its parameters.
      images_shape: ``[N, H, W, C]``, of which only the channels matter.
      seed: decides the initial parameters and the random numbers of training.
    """
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params, model_state = model.init(init_key, jnp.zeros(images_shape))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(train_key),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        ema_params=params,
    )


def apply_gradients(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    grads: chex.ArrayTree,
    ema_decay: float,
) -> TrainState:
    """Applies gradients to the parameters and updates the moving averages.

    Args:
      optimizer: the optimizer of the parameters.
      state: the state before the step, with the running statistics after it.
      grads: gradients in the form of ``state.params``.
      ema_decay: decay of the moving averages. At step ``t`` it is at most ``(1 + t) / (10 + t)``,
        so that they soon forget the initial values.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = materialize_on_cpu(optax.apply_updates(state.params, updates))
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema_model_state = state.ema_model_state
    if ema_model_state is not None:
        ema_model_state = optax.incremental_update(state.model_state, ema_model_state, 1 - decay)
    return state._replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema_params=materialize_on_cpu(
            optax.incremental_update(params, state.ema_params, 1 - decay)
        ),
        ema_model_state=ema_model_state,
    )


def make_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    *,
    label_smoothing: float,
    ema_decay: float,
    devices: Sequence[jax.Device],
    micro_batch_size: int = 0,
    sam: SAM | None = None,
    clipping_stats: ClippingStats | None = None,
    task: Task = CLASSIFICATION,
) -> Callable[[TrainState, DeviceBatch | Stride], tuple[TrainState, Metrics]]:
    """Makes the function that takes a training step, or a stride of them, on all devices.

    Gradients are averaged over the devices before they are clipped, and the random numbers of an
    example depend on its position in the global batch. So a step of a normalizer-free network is
    the same on any number of devices, but for rounding. With SAM per replica it also depends on how
    many images a device processes at a time.

    Args:
      model: the network.
      optimizer: the optimizer of its parameters.
      dataset: the images' mean and standard deviation.
      label_smoothing: of the loss, as ``Task.losses`` takes it.
      ema_decay: as in ``apply_gradients``.
      devices: the devices of all hosts, those of each host together.
      micro_batch_size: images per device and forward pass, a divisor of the device's part of the
        batch; 0 for the whole part. Gradients are averaged over the micro-batches, and the kernels
        are standardized once for all of them.
      sam: sharpness-aware minimization; None for plain gradients.
      clipping_stats: statistics of the clipping; None for none.
      task: what the network learns.

    Returns:
      ``(state, batch) -> (state, metrics)``, a ``jax.pmap`` that donates the state. The state is
      replicated. The batch comes from ``devices.transfer`` and holds ``image`` (uint8) and what
      else the task needs. What it holds for ``on_device.augment`` is done first. ``metrics`` holds
      means of ``Task.losses`` and ``grad_norm`` (before clipping), equal on all devices, and with
      ``clipping_stats`` also ``clipping``. In place of the batch it takes a ``Stride``, one step
      for each of its batches; the metrics then have an axis of S steps.
    """
    model_in_loop = model.with_policy(dataclasses.replace(model.policy, in_loop=True))

    def loss_fn(
        model: Model,
        weights: Any,
        model_state: chex.ArrayTree,
        batch: DeviceBatch,
        keys: jax.Array,
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        images = normalize(batch["image"], dataset.mean, dataset.std)
        outputs, model_state = model.forward(weights, model_state, keys, images, True)
        metrics = jax.tree.map(jnp.mean, task.losses(outputs, batch, label_smoothing))
        return metrics["loss"], (model_state, metrics)

    def grad_fn(model: Model) -> Callable[..., Any]:
        return jax.grad(functools.partial(loss_fn, model), has_aux=True)

    def over_micro_batches(
        make_grad_fn: Callable[[Model], Callable[..., Any]],
        at: Any,
        model_state: chex.ArrayTree,
        batch: DeviceBatch,
        keys: jax.Array,
    ) -> tuple[Any, tuple[chex.ArrayTree, Metrics]]:
        """Computes gradient, model state and metrics of a device's examples."""
        if micro_batch_size in (0, len(keys)):
            return make_grad_fn(model)(at, model_state, batch, keys)
        return _accumulate(
            make_grad_fn(model_in_loop), at, model_state, (batch, keys), micro_batch_size
        )

    def gradient(
        grad: Callable[..., Any],
        params: chex.ArrayTree,
        model_state: chex.ArrayTree,
        batch: DeviceBatch,
        keys: jax.Array,
    ) -> tuple[chex.ArrayTree, tuple[chex.ArrayTree, Metrics]]:
        """Computes ``grad`` of the prepared parameters, as a gradient of the parameters."""
        weights, prepare_vjp = jax.vjp(lambda params: model.prepare(params, batch["image"]), params)
        weight_grads, rest = grad(weights, model_state, batch, keys)
        return prepare_vjp(weight_grads)[0], rest

    def sam_grad_fn(sam: SAM, model: Model) -> Callable[..., Any]:
        """Makes the gradient where a replica's own ascent ends."""

        def grad(
            params: chex.ArrayTree, model_state: chex.ArrayTree, batch: DeviceBatch, keys: jax.Array
        ) -> tuple[chex.ArrayTree, tuple[chex.ArrayTree, Metrics]]:
            count = sam.ascent_examples(len(keys))
            first = jax.tree.map(lambda array: array[:count], (batch, keys))
            up, _ = gradient(grad_fn(model), params, model_state, *first)
            above = ascend(params, up, sam.rho)
            return gradient(grad_fn(model), above, model_state, batch, keys)

        return grad

    def mean(tree: Any) -> Any:
        """Averages over the devices."""
        # On one device the mean changes nothing, but XLA would copy every gradient for it.
        return lax.pmean(tree, AXIS) if lax.axis_size(AXIS) > 1 else tree

    def take_step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        # pmap reshapes each array to drop its axis of one device, and back at the end. Fused into
        # other operations, the reshape would keep XLA from updating the array in place.
        state = materialize(state)
        # Once, for SAM's two gradients and all micro-batches.
        batch = lax.optimization_barrier(on_device.augment(batch))
        examples = len(batch["image"])
        keys = _example_keys(state, examples)
        params, plain = state.params, functools.partial(over_micro_batches, grad_fn)
        if sam and not sam.per_replica:
            count = sam.ascent_examples(examples, micro_batch_size)
            first = jax.tree.map(lambda array: array[:count], (batch, keys))
            up, _ = mean(gradient(plain, params, state.model_state, *first))
            params = ascend(params, up, sam.rho)
        if sam and sam.per_replica:
            own = functools.partial(sam_grad_fn, sam)
            result = over_micro_batches(own, params, state.model_state, batch, keys)
        else:
            result = gradient(plain, params, state.model_state, batch, keys)
        grads, (model_state, metrics) = mean(result)
        metrics["grad_norm"] = optax_agc.global_norm(grads, state.params, UNIT_AXES)
        if clipping_stats:
            metrics["clipping"] = clipping_stats(state.step + 1, grads, state.params)
        state = state._replace(model_state=model_state)
        return apply_gradients(optimizer, state, grads, ema_decay), metrics

    def update(state: TrainState, batch: DeviceBatch | Stride) -> tuple[TrainState, Metrics]:
        if isinstance(batch, Stride):
            return _take_stride(take_step, state, batch)
        return take_step(state, batch)

    return jax.pmap(update, axis_name=AXIS, devices=devices, donate_argnums=0)


def _take_stride(
    take_step: Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]],
    state: TrainState,
    stride: Stride,
) -> tuple[TrainState, Metrics]:
    """Takes a step for each batch of a stride, in a loop on the device.

    The loop's length is an argument of the program, not a constant as in ``lax.scan``: one program
    serves strides of all lengths, so that it is compiled once, and where a run is divided into
    strides does not change a bit of the result.

    Returns:
      The last state, and the metrics with an axis of S steps, zeros after the last.
    """
    take_step = jax.jit(take_step, inline=True)  # Traced once, though called twice.
    of_one = jax.eval_shape(take_step, state, stride.batch(0))[1]
    longest = stride.places.shape[1]
    metrics = jax.tree.map(lambda one: jnp.zeros((longest, *one.shape), one.dtype), of_one)

    def step(index: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = carry
        state, of_one = take_step(state, stride.batch(index))
        return state, jax.tree.map(lambda all, one: all.at[index].set(one), metrics, of_one)

    return lax.fori_loop(0, stride.count[0], step, (state, metrics))


def _accumulate(
    grad_fn: Callable[..., Any],
    at: Any,
    model_state: chex.ArrayTree,
    examples: chex.ArrayTree,
    micro_batch_size: int,
) -> tuple[Any, tuple[chex.ArrayTree, Metrics]]:
    """Averages gradient and metrics over micro-batches.

    Returns:
      The mean of the gradients at ``at``, the model state after the last micro-batch, and the mean
      metrics.
    """
    micro_batches = jax.tree.map(
        lambda array: array.reshape(-1, micro_batch_size, *array.shape[1:]), examples
    )
    count = len(jax.tree.leaves(micro_batches)[0])

    def add(carry: tuple[Any, Any], micro_batch: Any) -> tuple[tuple[Any, Any], None]:
        sums, model_state = carry
        grads, (model_state, metrics) = grad_fn(at, model_state, *micro_batch)
        return (jax.tree.map(jnp.add, sums, (grads, metrics)), model_state), None

    first = jax.tree.map(lambda array: array[0], micro_batches)
    grads, (_, metrics) = jax.eval_shape(grad_fn, at, model_state, *first)
    # A sum in bfloat16 would lose small terms.
    zeros = jax.tree.map(lambda array: jnp.zeros(array.shape, jnp.float32), (grads, metrics))
    (sums, model_state), _ = lax.scan(add, (zeros, model_state), micro_batches)
    grads, metrics = jax.tree.map(
        lambda total, array: (total / count).astype(array.dtype), sums, (grads, metrics)
    )
    return grads, (model_state, metrics)


def examples_per_device(batch: DeviceBatch | Stride) -> int:
    """Returns the images that each device gets of a batch, or of each batch of a stride."""
    array = batch.places if isinstance(batch, Stride) else batch["label"]
    return array.shape[1]


def make_evaluate(
    model: Model,
    dataset: Dataset,
    *,
    devices: Sequence[jax.Device],
    task: Task = CLASSIFICATION,
) -> Callable[[chex.ArrayTree, chex.ArrayTree, DeviceBatch], Metrics]:
    """Makes the function that evaluates one batch on all devices.

    Args:
      model: the network.
      dataset: the images' mean and standard deviation.
      devices: the devices of all hosts, those of each host together.
      task: what the network learned.

    Returns:
      ``(params, model_state, batch) -> figures``, a ``jax.pmap``. Parameters and model state are
      replicated. The batch comes from ``devices.transfer`` and holds ``image``, ``label`` and
      ``mask``, which is 0 for examples that only fill the batch. The figures are those of
      ``Task.evaluate``, equal on all devices.
    """

    def evaluate(
        params: chex.ArrayTree, model_state: chex.ArrayTree, batch: DeviceBatch
    ) -> Metrics:
        images = normalize(batch["image"], dataset.mean, dataset.std)
        outputs, _ = model.apply(params, model_state, None, images, False)
        return task.evaluate(outputs, batch)

    return jax.pmap(evaluate, axis_name=AXIS, devices=devices)


def _example_keys(state: TrainState, examples: int) -> jax.Array:
    """Derives a key ``[N]`` for each example from the step and its position in the global batch."""
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    positions = lax.axis_index(AXIS) * examples + jnp.arange(examples)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, positions)
