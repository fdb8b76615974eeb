"""Registers the tasks, and an optimizer for comparison; configurations import this module."""

import optax
from ml_collections import ConfigDict

from nfnets_jax import optax_agc
from nfnets_jax.training.recipe import register_optimizer, sgd_in_place
from nfnets_jax.training.task import register_task
from nfnets_jax.training.units import UNIT_AXES

from ..predictors import register_predictor
from .detection import Detection
from .network import HEAD
from .prediction import open_predictor
from .segmentation import Segmentation


def _sgd_with_free_head(settings: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer ``sgd`` that clips the backbone's gradients and not the head's."""

    def is_backbone(params: optax.Params) -> optax.Params:
        return {
            module: dict.fromkeys(arrays, not module.startswith(HEAD))
            for module, arrays in params.items()
        }

    return optax.chain(
        optax_agc.adaptive_grad_clip(
            settings.clipping, settings.clipping_eps, unit_axes=UNIT_AXES, mask=is_backbone
        ),
        sgd_in_place(
            rate, settings.momentum, settings.nesterov, settings.weight_decay, clipping=0.0
        ),
    )


register_task("detection", Detection())
register_task("segmentation", Segmentation())
register_optimizer("sgd_with_free_head", _sgd_with_free_head)
for name in ("detection", "segmentation"):
    register_predictor(name, open_predictor)
