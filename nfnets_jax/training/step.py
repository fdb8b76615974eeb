"""One update and one evaluation of a batch, the same on every device, by ``jax.pmap``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nfnets_jax.data.sources import Dataset
from nfnets_jax.kernels.convolution import in_loop
from nfnets_jax.models.registry import Model
from nfnets_jax.optax_agc import materialized
from nfnets_jax.training import objective
from nfnets_jax.training.sam import SAM, ascend
from nfnets_jax.training.telemetry import Look

_AXIS = "devices"

DeviceBatch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that an update changes, and the key that its randomness comes from."""

    step: chex.ArrayTree
    key: chex.ArrayTree
    params: chex.ArrayTree
    model_state: chex.ArrayTree
    opt_state: chex.ArrayTree
    ema_params: chex.ArrayTree


def create_state(
    model: Model, optimizer: optax.GradientTransformation, images_shape: Sequence[int], seed: int
) -> TrainState:
    """A new state, on the default device.

    ``images_shape`` is ``[N, H, W, C]``, of which only the channels matter.
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
    """The state one step on: parameters, optimizer and moving average; the rest is as it was.

    The average decays by at most ``(1 + step) / (10 + step)``, so that it soon forgets its start.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = materialized(optax.apply_updates(state.params, updates))
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    return state._replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema_params=materialized(optax.incremental_update(params, state.ema_params, 1 - decay)),
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
    sam: SAM = SAM(),  # noqa: B008, it is immutable
    look: Look | None = None,
) -> Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]]:
    """An update of replicated states by batches that are split over devices.

    Gradients are averaged over the devices before they are clipped, as if the batch had been on
    one. Random numbers belong to an example's place in the global batch: they, too, are the same on
    any number of devices.

    Args:
      model, optimizer: what is trained, and how.
      dataset: whose images they are.
      label_smoothing: of the loss.
      ema_decay: of the moving average, at most.
      devices: of all hosts, each host's together.
      micro_batch_size: images that a device works on at once, a divisor of its part of the batch; 0
        for all of it. The gradient is the mean over the micro-batches, and the kernels are
        standardized once for all of them.
      sam: whether and how the gradient is taken at a worse place nearby.
      look: when to look at the clipping; None for never.

    Returns:
      ``(state, batch) -> (state, metrics)``; the state given is donated. The batch comes from
      ``transfer`` and has ``image`` and ``label``; with ``other_label`` and ``share`` too, images
      are taken for mixtures. ``metrics`` has ``loss``, ``top1`` and ``grad_norm`` (before
      clipping), equal on all devices; with ``look`` also ``clipping``, of ``telemetry.measure``.
    """

    def loss_fn(
        weights: Any, model_state: chex.ArrayTree, batch: DeviceBatch, keys: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        images = objective.normalize(batch["image"], dataset.mean, dataset.std)
        outputs, model_state = model.forward(weights, model_state, keys, images, True)
        logits = outputs["logits"]
        losses = _of_mixtures(
            lambda labels: objective.cross_entropy(logits, labels, label_smoothing), batch
        )
        hits = _of_mixtures(lambda labels: objective.in_top(logits, labels, 1), batch)
        loss = jnp.mean(losses)
        return loss, (model_state, {"loss": loss, "top1": jnp.mean(hits)})

    gradient = jax.grad(loss_fn, has_aux=True)

    def mean_gradient(
        params: chex.ArrayTree, model_state: chex.ArrayTree, batch: DeviceBatch, keys: jax.Array
    ) -> tuple[chex.ArrayTree, chex.ArrayTree, Metrics]:
        """Gradient, model state and metrics, means over the examples of all devices."""
        weights, to_params = jax.vjp(lambda params: model.prepare(params, batch["image"]), params)
        if micro_batch_size in (0, len(keys)):
            of_weights, (model_state, metrics) = gradient(weights, model_state, batch, keys)
        else:
            of_weights, model_state, metrics = _accumulate(
                gradient, weights, model_state, (batch, keys), micro_batch_size
            )
        (grads,) = to_params(of_weights)
        # On one device XLA would copy every gradient for a mean that changes none.
        if lax.axis_size(_AXIS) > 1:
            grads, model_state, metrics = lax.pmean((grads, model_state, metrics), _AXIS)
        return grads, model_state, metrics

    def update(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        # Here arrays lose pmap's axis of one device, which they get back at the end: what would do
        # so besides other work could not replace them in place.
        state = materialized(state)
        examples = len(batch["image"])
        keys = _example_keys(state, examples)
        params = state.params
        if sam.rho:
            part = sam.examples(examples, micro_batch_size)
            some = jax.tree.map(lambda array: array[:part], (batch, keys))
            grads, _, _ = mean_gradient(params, state.model_state, *some)
            params = ascend(params, grads, sam.rho)
        grads, model_state, metrics = mean_gradient(params, state.model_state, batch, keys)
        # Without the barrier, XLA may compute the gradients once more in the loops of their norm.
        grad_norm = optax.tree.norm(lax.optimization_barrier(grads))
        new_state = apply_gradients(
            optimizer, state._replace(model_state=model_state), grads, ema_decay
        )
        metrics = {**metrics, "grad_norm": grad_norm}
        if look:
            metrics["clipping"] = look(state.step + 1, grads, state.params)
        return new_state, metrics

    return jax.pmap(update, axis_name=_AXIS, devices=devices, donate_argnums=0)


def _accumulate(
    gradient: Callable[..., Any],
    weights: Any,
    model_state: chex.ArrayTree,
    examples: chex.ArrayTree,
    size: int,
) -> tuple[Any, chex.ArrayTree, Metrics]:
    """Means of gradient and metrics over parts of so many examples; the last model state."""
    parts = jax.tree.map(lambda array: array.reshape(-1, size, *array.shape[1:]), examples)
    count = len(jax.tree.leaves(parts)[0])

    def add(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], None]:
        sums, model_state = carry
        with in_loop():
            grads, (model_state, metrics) = gradient(weights, model_state, *part)
        return (jax.tree.map(jnp.add, sums, (grads, metrics)), model_state), None

    first = jax.tree.map(lambda array: array[0], parts)
    grads, (_, metrics) = jax.eval_shape(gradient, weights, model_state, *first)
    # Sums of bfloat16 would lose what small parts add.
    zeros = jax.tree.map(lambda array: jnp.zeros(array.shape, jnp.float32), (grads, metrics))
    (sums, model_state), _ = lax.scan(add, (zeros, model_state), parts)
    grads, metrics = jax.tree.map(
        lambda total, array: (total / count).astype(array.dtype), sums, (grads, metrics)
    )
    return grads, model_state, metrics


def make_evaluate(
    model: Model, dataset: Dataset, *, devices: Sequence[jax.Device]
) -> Callable[[chex.ArrayTree, chex.ArrayTree, DeviceBatch], Metrics]:
    """Sums of metrics over a batch's real examples.

    Returns:
      ``(params, model_state, batch) -> sums`` of replicated parameters and a batch from
      ``transfer``, with ``loss`` (no smoothing), ``top1``, ``top5`` and ``examples``, equal on all
      devices.
    """

    def evaluate(
        params: chex.ArrayTree, model_state: chex.ArrayTree, batch: DeviceBatch
    ) -> Metrics:
        images = objective.normalize(batch["image"], dataset.mean, dataset.std)
        outputs, _ = model.apply(params, model_state, None, images, False)
        logits, labels = outputs["logits"], batch["label"]
        figures = {
            "loss": objective.cross_entropy(logits, labels),
            "top1": objective.in_top(logits, labels, 1),
            "top5": objective.in_top(logits, labels, 5),
            "examples": jnp.ones(len(labels)),
        }
        sums = {name: jnp.sum(values * batch["mask"]) for name, values in figures.items()}
        return lax.psum(sums, _AXIS)

    return jax.pmap(evaluate, axis_name=_AXIS, devices=devices)


def replicate(tree: chex.ArrayTree, devices: Sequence[jax.Device]) -> chex.ArrayTree:
    """A copy of the tree on each device, as ``pmap`` takes it: with one leading axis more."""
    # The axis has the updates' name: by another, their first outputs would be compiled for anew.
    copy = jax.pmap(lambda _, leaves: leaves, _AXIS, in_axes=(0, None), devices=devices)
    return copy(np.arange(len(local(devices))), tree)


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of this host."""
    return [device for device in devices if device.process_index == jax.process_index()]


def fetch(tree: chex.ArrayTree) -> chex.ArrayTree:
    """The first device's copy of a replicated tree, as arrays of the host's own memory."""
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_shards[0].data)[0], tree)


def transfer(batch: Mapping[str, np.ndarray], devices: Sequence[jax.Device]) -> DeviceBatch:
    """One host's batch ``[B, ...]`` on its devices, as ``[devices, B / devices, ...]``."""
    here = local(devices)
    sharding = NamedSharding(Mesh(np.array(here), (_AXIS,)), PartitionSpec(_AXIS))
    parts = {name: array.reshape(len(here), -1, *array.shape[1:]) for name, array in batch.items()}
    return jax.device_put(parts, sharding)


def _of_mixtures(figure: Callable[[jax.Array], jax.Array], batch: DeviceBatch) -> jax.Array:
    """A figure of each example and its label; of a mixture, of both labels by their shares."""
    own = figure(batch["label"])
    if "share" not in batch:
        return own
    return batch["share"] * own + (1 - batch["share"]) * figure(batch["other_label"])


def _example_keys(state: TrainState, examples: int) -> jax.Array:
    """A key for each of this device's examples, by the step and the place in the global batch."""
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    places = lax.axis_index(_AXIS) * examples + jnp.arange(examples)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, places)
