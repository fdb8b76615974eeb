"""Whole optimizers with AGC, and masks that say which parameters AGC and weight decay touch."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nfnets_jax.optax_agc.clipping import Clipping, Mask, adaptive_grad_clip
from nfnets_jax.optax_agc.units import Convention, Path, UnitAxes, describe, name_of, with_paths


def sgd_agc(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 2e-5,
    clipping: Clipping | None = 0.01,
    eps: float = 1e-3,
    unit_axes: UnitAxes | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer that NFNets are trained with.

    In this order: AGC on everything except the classifier's weight matrix; weight decay, added to
    the clipped gradient of kernels and matrices; momentum; the learning rate.

    Args:
      learning_rate: a number or a schedule of the step.
      momentum: decay of the accumulated gradient.
      nesterov: whether the step looks ahead by one more momentum.
      weight_decay: of ``kernels``: no gain, skip gain or bias.
      clipping, eps, unit_axes: as in ``adaptive_grad_clip``; a ``clipping`` of None leaves AGC out.
      mask: likewise, but None is ``all_but_classifier``; True clips the classifier too.

    References:
      Brock et al. 2021, arXiv:2102.06171, section 6.1.
    """
    return optax.chain(
        _agc(clipping, eps, unit_axes, mask),
        optax.add_decayed_weights(weight_decay, functools.partial(kernels, unit_axes=unit_axes)),
        optax.trace(momentum, nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw_agc(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 1e-4,
    clipping: Clipping | None = 0.01,
    eps: float = 1e-3,
    adam_eps: float = 1e-8,
    unit_axes: UnitAxes | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns AdamW of clipped gradients.

    In this order: AGC, Adam's moments, weight decay of kernels and matrices, the learning rate.

    Args:
      learning_rate: a number or a schedule of the step.
      b1, b2: decay of the first and of the second moment.
      weight_decay: of ``kernels``.
      clipping, eps, unit_axes, mask: as in ``sgd_agc``.
      adam_eps: added to the root of the second moment.

    References:
      Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    return optax.chain(
        _agc(clipping, eps, unit_axes, mask),
        optax.adamw(
            learning_rate,
            b1,
            b2,
            adam_eps,
            weight_decay=weight_decay,
            mask=functools.partial(kernels, unit_axes=unit_axes),
        ),
    )


def _agc(
    clipping: Clipping | None, eps: float, unit_axes: UnitAxes | None, mask: Mask | None
) -> optax.GradientTransformation:
    if clipping is None:
        return optax.identity()
    mask = all_but_classifier if mask is None else mask
    return adaptive_grad_clip(clipping, eps, unit_axes, mask)


def all_but_classifier(params: optax.Params) -> Any:
    """Returns a mask: false for the weight matrix that makes the logits, true for all else.

    The classifier is recognized by its name: a matrix ``w``, ``kernel`` or ``weight`` of a layer
    called ``linear``, ``logits``, ``classifier``, ``head``, ``lm_head`` or ``fc`` that belongs to
    the network itself and not to a block of it (Haiku's ``NFNet/~/linear``; not
    ``NFNet/~/nf_block/~/squeeze_excite/~/linear``).
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_classifier(path), params)


_CLASSIFIER = re.compile(
    r"(params/)?([^/]+/)?(~/)?(linear|logits|classifier|head|lm_head|fc)[/.](w|kernel|weight)"
)


def _is_classifier(path: Path) -> bool:
    return _CLASSIFIER.fullmatch(name_of(path)) is not None


def all_but(*patterns: str) -> Callable[[optax.Params], Any]:
    """Returns a mask function: false for parameters whose names match a regular expression.

    A name is ``layer/kernel``; an expression may match any part of it.

    Raises:
      ValueError: in use, if an expression matches no name.
    """

    def mask(params: optax.Params) -> Any:
        names = [name_of(path) for path, _ in with_paths(params)]
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise ValueError(f"all_but: no parameter has {pattern!r} in its name")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not any(re.search(pattern, name_of(path)) for pattern in patterns),
            params,
        )

    return mask


def kernels(params: optax.Params, unit_axes: UnitAxes | None = None) -> Any:
    """Returns a mask: true for parameters with two axes or more, false for gains and biases.

    Axes that count equal layers, which a ``Convention`` as ``unit_axes`` recognizes, do not count.
    """
    described = describe(params)

    def is_kernel(path: Path, param: jax.Array) -> bool:
        counting = 0
        if isinstance(unit_axes, Convention):
            counting = unit_axes.layer_axes(described[name_of(path)])
        return jnp.ndim(param) - counting > 1

    return jax.tree_util.tree_map_with_path(is_kernel, params)
