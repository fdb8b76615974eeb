"""The training recipe: learning-rate schedule and optimizer of a configuration."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import optax

from nfnets_jax import optax_agc
from nfnets_jax.errors import InputError
from nfnets_jax.training.finetuning import layerwise_decay
from nfnets_jax.training.fusion import materialize_on_cpu
from nfnets_jax.training.schema import SCHEDULES
from nfnets_jax.training.units import UNIT_AXES

# RMSProp as in EfficientNetV2 (Tan and Le 2021, arXiv:2104.00298, section 5.1); the epsilon is that
# of its authors' code, which adds it to the mean square.
_RMS_DECAY, _RMS_EPS = 0.9, 1e-3
# Names of biases, of matrices and of convolutions.
_BIASES = ("b", "bias")


def learning_rate_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Creates the learning-rate schedule of ``config.optimizer``: linear warm-up, then decay.

    The peak is ``base_learning_rate * batch_size / 256`` (Goyal et al. 2017, arXiv:1706.02677).
    Warm-up takes ``warmup_fraction`` of ``num_steps``. The decay is a cosine (Brock et al. 2021b,
    arXiv:2102.06171, section 6.1) or a line to ``final_learning_rate``, or exponential in steps: a
    factor of ``decay_rate`` after every ``decay_fraction`` of ``num_steps``, counted from the end
    of the warm-up, or with ``decay_in_warmup`` from step 0.

    Raises:
      InputError: there is no such ``schedule``.
    """
    settings, num_steps = config.optimizer, config.num_steps
    if settings.schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise InputError(f"no optimizer.schedule {settings.schedule!r}; there are {known}")
    peak = settings.base_learning_rate * config.batch_size / 256
    warmup_steps = round(settings.warmup_fraction * num_steps)
    final = settings.final_learning_rate
    if settings.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, num_steps, final)
    if settings.schedule == "linear":
        decay = optax.linear_schedule(peak, final, num_steps - warmup_steps)
    else:
        every = max(1, round(settings.decay_fraction * num_steps))
        before = warmup_steps if settings.decay_in_warmup else 0
        decays = optax.exponential_decay(peak, every, settings.decay_rate, staircase=True)

        def decay(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
            return decays(step + before)

    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def create_optimizer(
    config: ml_collections.ConfigDict, depths: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Creates the optimizer of ``config.optimizer``.

    It clips gradients with AGC unless ``clipping`` is 0, adds weight decay, and updates by SGD or
    RMSProp with momentum, or by an optimizer that a project registered.

    Args:
      config: the configuration of the run.
      depths: depth of each module from ``finetuning.layer_depths``, by which ``layer_decay`` lowers
        the learning rate. Parameters and depths may both be stacked by ``Model.stacked``.

    Raises:
      InputError: there is no such ``name`` or ``schedule``, ``layer_decay`` is not in [0, 1], or
        the optimizer does not take the ``weight_decay``.
    """
    settings = config.optimizer
    if not 0 <= settings.layer_decay <= 1:
        raise InputError(f"optimizer.layer_decay is {settings.layer_decay}; it takes 0 to 1")
    if settings.name not in _OPTIMIZERS:
        known = ", ".join(_OPTIMIZERS)
        raise InputError(f"no optimizer.name {settings.name!r}; there are {known}")
    optimizer = _OPTIMIZERS[settings.name](settings, learning_rate_schedule(config))
    if settings.layer_decay == 1:
        return optimizer
    return optax.chain(optimizer, layerwise_decay(settings.layer_decay, depths))


def sgd_in_place(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 2e-5,
    clipping: float = 0.01,
    eps: float = 1e-3,
    decay_biases: bool = False,
) -> optax.GradientTransformation:
    """Returns ``optax_agc.sgd_agc`` for Haiku, whose state a donating step updates in place.

    The arguments are those of ``sgd_agc``, and whether biases decay as kernels do; a ``clipping``
    of 0 leaves AGC out.
    """
    return optax.chain(
        _clip(clipping, eps),
        _decay(weight_decay, decay_biases),
        _momentum(momentum, nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )


def _sgd(settings: ml_collections.ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return sgd_in_place(
        rate,
        settings.momentum,
        settings.nesterov,
        settings.weight_decay,
        settings.clipping,
        settings.clipping_eps,
        settings.decay_biases,
    )


def _rmsprop(
    settings: ml_collections.ConfigDict, rate: optax.Schedule
) -> optax.GradientTransformation:
    return optax.chain(
        _clip(settings.clipping, settings.clipping_eps),
        _decay(settings.weight_decay, settings.decay_biases),
        rmsprop(rate, settings.momentum, settings.nesterov),
    )


def rmsprop(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Returns the RMSProp that EfficientNets are trained with, without weight decay."""
    return optax.rmsprop(
        learning_rate,
        decay=_RMS_DECAY,
        eps=_RMS_EPS,
        initial_scale=1.0,
        momentum=momentum,
        nesterov=nesterov,
    )


def _clip(clipping: float, eps: float) -> optax.GradientTransformation:
    if not clipping:
        return optax.identity()
    return optax_agc.adaptive_grad_clip(
        clipping, eps, unit_axes=UNIT_AXES, mask=optax_agc.all_but_classifier
    )


def _decay(weight_decay: float, biases: bool) -> optax.GradientTransformation:
    def decays(path: optax_agc.Path, is_kernel: bool) -> bool:
        return is_kernel or (biases and path[-1].key in _BIASES)

    def mask(params: optax.Params) -> Any:
        kernels = optax_agc.kernels(params, unit_axes=UNIT_AXES)
        return jax.tree_util.tree_map_with_path(decays, kernels)

    return optax.add_decayed_weights(weight_decay, mask)


def _momentum(decay: float, nesterov: bool) -> optax.GradientTransformation:
    """Returns ``optax.trace``, whose accumulated gradient is written to memory once on a CPU."""
    accumulate = optax.trace(decay)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        state = materialize_on_cpu(accumulate.update(updates, state, params)[1])
        if not nesterov:
            return state.trace, state
        return jax.tree.map(lambda g, trace: g + decay * trace, updates, state.trace), state

    return optax.GradientTransformation(accumulate.init, update)


CreateOptimizer = Callable[
    [ml_collections.ConfigDict, optax.Schedule], optax.GradientTransformation
]
_OPTIMIZERS: dict[str, CreateOptimizer] = {"sgd": _sgd, "rmsprop": _rmsprop}


def register_optimizer(name: str, create: CreateOptimizer) -> None:
    """Makes an optimizer a value of ``optimizer.name``.

    Args:
      name: replaces an optimizer of that name.
      create: ``(config.optimizer, learning_rate) -> optax.GradientTransformation``.
    """
    _OPTIMIZERS[name] = create
