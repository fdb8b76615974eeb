"""One training run as pure functions of its numbers, to be mapped over runs and devices."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nfnets_jax import optax_agc
from nfnets_jax.data.keyed_augmentation import KeyedAugmentation
from nfnets_jax.data.normalization import normalize
from nfnets_jax.models.registry import Model
from nfnets_jax.training import objective
from nfnets_jax.training.recipe import rmsprop
from nfnets_jax.training.units import UNIT_AXES

_TEST_BATCH = 500


class Run(NamedTuple):
    """What a run has of its own; all of it enters the compiled program as numbers.

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
      rmsprop: whether the updates are those of RMSProp, which no AGC precedes, and not of SGD.
    """

    model: Model
    batch_size: int
    steps: int
    warmup_steps: int = 0
    decays: bool = True
    label_smoothing: float = 0.0
    augmentation: KeyedAugmentation = KeyedAugmentation()  # noqa: RUF009, it is immutable
    rmsprop: bool = False

    def schedule(self, step: jax.typing.ArrayLike) -> Any:
        """Returns the learning rate of a step over that of the peak."""
        rise = optax.linear_schedule(0.0, 1.0, self.warmup_steps)
        if not self.decays:
            return rise(step) if self.warmup_steps else 1.0
        fall = optax.cosine_decay_schedule(1.0, max(1, self.steps - self.warmup_steps))
        return optax.join_schedules([rise, fall], [self.warmup_steps])(step)


class Images(NamedTuple):
    """Images ``[N, H, W, C]`` uint8 and labels ``[N]`` int32, to train on and to test on."""

    images: Any
    labels: Any
    test_images: Any
    test_labels: Any


class State(NamedTuple):
    """What training changes.

    Attributes:
      params, model_state, opt_state: of network and optimizer.
      diverged_at: the first step whose loss was not finite, int32 ``[]``; the number of steps if
        there was none.
    """

    params: Any
    model_state: Any
    opt_state: Any
    diverged_at: jax.Array


@dataclasses.dataclass(frozen=True)
class PureRun:
    """The functions of a run.

    Attributes:
      task: what is trained.
      mean, std: per channel, of pixels in [0, 1].
      epoch_steps: updates of ``epoch``.
    """

    task: Task
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epoch_steps: int

    def start(self, run: Run, data: Images) -> State:
        """Returns the initial state."""
        images = jnp.zeros((1, *data.images.shape[1:]))
        params, model_state = self._model.init(_keys(run)[0], images)
        params, model_state = self._model.stacked(params), self._model.stacked(model_state)
        opt_state = self._optimizer(run).init(params)
        return State(params, model_state, opt_state, jnp.int32(self.task.steps))

    def epoch(
        self, run: Run, data: Images, state: State, first: jax.Array
    ) -> tuple[State, jax.Array]:
        """Trains on a new order of the images.

        Args:
          run, data, state: the run.
          first: number of the first step, int32 ``[]``.

        Returns:
          The state and the losses ``[epoch_steps]``. A diverged run keeps its state, and after its
          last step a run does too; their losses are NaN.
        """
        order_key = jax.random.fold_in(_keys(run)[1], first)
        order = jax.random.permutation(order_key, len(data.labels))

        def step(state: State, index: jax.Array) -> tuple[State, jax.Array]:
            number = first + index
            is_live = (number < self.task.steps) & (number <= state.diverged_at)
            size = self.task.batch_size

            def update(state: State) -> tuple[State, jax.Array]:
                places = lax.dynamic_slice(order, (index * size,), (size,))
                return self._update(run, data, state, number, places)

            return lax.cond(is_live, update, lambda state: (state, jnp.float32(jnp.nan)), state)

        return lax.scan(step, state, jnp.arange(self.epoch_steps))

    def test(self, data: Images, state: State) -> jax.Array:
        """Returns the share of the test images that are classified rightly, float32 ``[]``."""
        count = len(data.test_labels)
        size = min(_TEST_BATCH, count)

        def correct(places: jax.Array) -> jax.Array:
            images = normalize(data.test_images[places], self.mean, self.std)
            outputs, _ = self._model.apply(state.params, state.model_state, None, images, False)
            hits = objective.in_top_k(outputs["logits"], data.test_labels[places], 1)
            return jnp.sum(hits * (places < count))

        places = jnp.arange(math.ceil(count / size) * size).reshape(-1, size)
        return jnp.sum(lax.map(correct, places)) / count

    def _update(
        self, run: Run, data: Images, state: State, number: jax.Array, places: jax.Array
    ) -> tuple[State, jax.Array]:
        """Takes the step of a number with the images at some places."""
        key = jax.random.fold_in(_keys(run)[2], number)
        augment_key, network_key = jax.random.split(key)
        batch = self.task.augmentation(augment_key, data.images[places], data.labels[places])

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            images = normalize(batch["image"], self.mean, self.std)
            outputs, model_state = self._model.apply(
                params, state.model_state, network_key, images, True
            )
            cross_entropy = functools.partial(
                objective.cross_entropy, outputs["logits"], smoothing=self.task.label_smoothing
            )
            return jnp.mean(objective.over_labels(cross_entropy, batch)), model_state

        (loss, model_state), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = self._optimizer(run).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        diverged_at = jnp.where(jnp.isfinite(loss), state.diverged_at, number)
        return State(params, model_state, opt_state, diverged_at), loss

    @property
    def _model(self) -> Model:
        # XLA's CPU backend has only slow gradients of convolutions inside loops.
        policy = dataclasses.replace(self.task.model.policy, in_loop=True)
        return self.task.model.with_policy(policy)

    def _optimizer(self, run: Run) -> optax.GradientTransformation:
        def rate(step: jax.typing.ArrayLike) -> Any:
            return run.learning_rate * self.task.schedule(step)

        if self.task.rmsprop:
            kernels = functools.partial(optax_agc.kernels, unit_axes=UNIT_AXES)
            decay = optax.add_decayed_weights(run.weight_decay, kernels)
            return optax.chain(decay, rmsprop(rate, run.momentum))
        return optax_agc.sgd_agc(
            rate,
            momentum=run.momentum,
            weight_decay=run.weight_decay,
            # No gradient is longer than infinity.
            clipping=jnp.where(run.clipping > 0, run.clipping, jnp.inf),
            unit_axes=UNIT_AXES,
        )


def _keys(run: Run) -> jax.Array:
    """Returns the keys of a run's initial parameters, of its order and of its steps, ``[3]``."""
    return jax.random.split(jax.random.key(run.seed), 3)
