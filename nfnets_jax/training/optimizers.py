"""The papers' training recipe as a schedule and an optax transformation."""

from collections.abc import Mapping

import ml_collections
import optax

from nfnets_jax import optax_agc
from nfnets_jax.errors import InputError
from nfnets_jax.training.transfer import scale_by_layer


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Linear warm-up to ``base_learning_rate * batch_size / 256``, then a cosine to zero.

    The linear scaling is of Goyal et al. 2017, arXiv:1706.02677, the schedule of NFNets, section
    6.1. ``optimizer.warmup_fraction`` is the warm-up's share of ``num_steps``.
    """
    peak = config.optimizer.base_learning_rate * config.batch_size / 256
    warmup_steps = round(config.optimizer.warmup_fraction * config.num_steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, config.num_steps)


def create_optimizer(
    config: ml_collections.ConfigDict, heights: Mapping[str, int]
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, weight decay and AGC by ``config.optimizer``.

    ``clipping`` of 0 leaves AGC out. ``heights`` are those of ``transfer.heights``, by which
    ``layer_decay`` lowers the learning rate.

    Raises:
      InputError: ``layer_decay`` is no share.
    """
    settings = config.optimizer
    if not 0 <= settings.layer_decay <= 1:
        raise InputError(f"optimizer.layer_decay is {settings.layer_decay}; it takes 0 to 1")
    optimizer = optax_agc.sgd_agc(
        learning_rate(config),
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        clipping=settings.clipping or None,
        eps=settings.clipping_eps,
    )
    if settings.layer_decay == 1:
        return optimizer
    return optax.chain(optimizer, scale_by_layer(settings.layer_decay, heights))
