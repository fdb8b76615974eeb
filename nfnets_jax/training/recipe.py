"""The training recipe: learning-rate schedule and optimizer of a configuration."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from nfnets_jax import optax_agc
from nfnets_jax.errors import InputError
from nfnets_jax.training.finetuning import layerwise_decay
from nfnets_jax.training.muon import scale_by_muon

# RMSProp as in EfficientNetV2 (Tan and Le 2021, arXiv:2104.00298, section 5.1); the epsilon is that
# of its authors' code, which adds it to the mean square.
_RMS_DECAY, _RMS_EPS = 0.9, 1e-3
# What Muon does not move has this share of its learning rate, by Adam with this decay of squares.
_ADAM_SHARE, _ADAM_DECAY = 0.2, 0.99
_SCHEDULES = ("cosine", "linear", "exponential")


def learning_rate_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Creates the learning-rate schedule of ``config.optimizer``: linear warm-up, then decay.

    The peak is ``base_learning_rate * batch_size / 256`` (Goyal et al. 2017, arXiv:1706.02677).
    Warm-up takes ``warmup_fraction`` of ``num_steps``. The decay is a cosine to zero (Brock et al.
    2021b, arXiv:2102.06171, section 6.1), a line to zero, or exponential in steps: a factor of
    ``decay_rate`` after every ``decay_fraction`` of ``num_steps``.

    Raises:
      InputError: there is no such ``schedule``.
    """
    settings, num_steps = config.optimizer, config.num_steps
    if settings.schedule not in _SCHEDULES:
        known = ", ".join(_SCHEDULES)
        raise InputError(f"no optimizer.schedule {settings.schedule!r}; there are {known}")
    peak = settings.base_learning_rate * config.batch_size / 256
    warmup_steps = round(settings.warmup_fraction * num_steps)
    if settings.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, num_steps)
    if settings.schedule == "linear":
        decay = optax.linear_schedule(peak, 0.0, num_steps - warmup_steps)
    else:
        every = max(1, round(settings.decay_fraction * num_steps))
        decay = optax.exponential_decay(peak, every, settings.decay_rate, staircase=True)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def create_optimizer(
    config: ml_collections.ConfigDict, depths: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Creates the optimizer of ``config.optimizer``.

    It clips gradients with AGC unless ``clipping`` is 0, adds weight decay, and updates by SGD,
    RMSProp or Muon with momentum.

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


def _sgd(settings: ml_collections.ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax_agc.sgd_agc(
        rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        clipping=settings.clipping or None,
        eps=settings.clipping_eps,
        unit_axes=optax_agc.haiku,
    )


def _rmsprop(
    settings: ml_collections.ConfigDict, rate: optax.Schedule
) -> optax.GradientTransformation:
    return optax.chain(
        _clip(settings),
        optax.add_decayed_weights(
            settings.weight_decay,
            functools.partial(optax_agc.kernels, unit_axes=optax_agc.haiku),
        ),
        optax.rmsprop(
            rate,
            decay=_RMS_DECAY,
            eps=_RMS_EPS,
            initial_scale=1.0,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
        ),
    )


def _muon(
    settings: ml_collections.ConfigDict, rate: optax.Schedule
) -> optax.GradientTransformation:
    """Kernels of convolutions by Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    They keep their norms, in place of weight decay. All else is moved by Adam.

    Raises:
      InputError: there is weight decay.
    """
    if settings.weight_decay:
        raise InputError(
            f"optimizer.weight_decay is {settings.weight_decay}; muon keeps norms and takes 0"
        )
    muon = optax.chain(
        scale_by_muon(settings.momentum, settings.nesterov),
        optax.scale_by_learning_rate(rate),
    )
    adam = optax.adam(
        lambda step: _ADAM_SHARE * rate(step), b2=_ADAM_DECAY, nesterov=settings.nesterov
    )
    return optax.chain(
        _clip(settings),
        optax.partition(
            {"kernel": muon, "other": adam},
            lambda params: jax.tree.map(
                lambda param: "kernel" if _is_convolution(param) else "other", params
            ),
        ),
        optax.stateless(_keep_norms),
    )


def _keep_norms(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    """Lets kernels of convolutions move on spheres."""

    def on_sphere(update: jax.Array, param: jax.Array) -> jax.Array:
        if not _is_convolution(param):
            return update
        moved = param + update
        return moved * (_kernel_norm(param) / _kernel_norm(moved)) - param

    return jax.tree.map(on_sphere, updates, params)


def _is_convolution(param: jax.Array) -> bool:
    """Whether it is ``[h, w, I, O]``, or equal layers' ``[layers, h, w, I, O]``."""
    return param.ndim >= 4


def _kernel_norm(kernel: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(-4, -3, -2, -1), keepdims=True))


def _clip(settings: ml_collections.ConfigDict) -> optax.GradientTransformation:
    if not settings.clipping:
        return optax.identity()
    return optax_agc.adaptive_grad_clip(
        settings.clipping,
        settings.clipping_eps,
        unit_axes=optax_agc.haiku,
        mask=optax_agc.all_but_classifier,
    )


_OPTIMIZERS = {"sgd": _sgd, "rmsprop": _rmsprop, "muon": _muon}
