"""Adaptive Gradient Clipping for any JAX project; needs jax and optax alone.

AGC (Brock et al. 2021, arXiv:2102.06171, section 4) bounds how far one step can move a unit of a
layer, as a share of how long the unit's weights are. With ``W_i`` the weights that feed output unit
``i`` and ``G_i`` their gradient,

    ``G_i <- G_i * min(1, clipping * max(|W_i|, eps) / |G_i|)``

Example:
  >>> import jax.numpy as jnp
  >>> import optax
  >>> from nfnets_jax import optax_agc
  >>> optimizer = optax.chain(optax_agc.adaptive_grad_clip(0.01), optax.sgd(0.1))
  >>> params = {"dense": {"w": jnp.ones((4, 2))}}
  >>> updates, state = optimizer.update(params, optimizer.init(params), params)
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Path = tuple[Any, ...]
UnitAxes = Callable[[Path, jax.Array], int | Sequence[int] | None]
Mask = Any | Callable[[optax.Params], Any]

# Where a rank leaves no doubt, these axes run inside a unit: [I, O], [I, O, heads], HWIO, DHWIO.
_AXES_BY_RANK = {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}


def adaptive_grad_clip(
    clipping: float = 0.01,
    eps: float = 1e-3,
    unit_axes: UnitAxes | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Clips each unit's gradient to ``clipping`` times the norm of the unit's weights.

    The same as ``optax.adaptive_grad_clip`` where both are defined.

    Args:
      clipping: largest allowed ratio of a unit's gradient norm to its weight norm.
      eps: lower bound of the weight norm, so that a unit at zero can leave it.
      unit_axes: ``(path, parameter) -> axes`` that the norms are taken over, None for those that
        the rank tells: all of a scalar or a vector, all but the last of ``[I, O]`` matrices, HWIO
        and DHWIO kernels, the first of three.
      mask: a tree of booleans in the form of the parameters, or a function from the parameters to
        it; true where to clip. None clips all. ``all_but_classifier`` is what the paper does.

    Returns:
      A transformation without state whose ``update`` needs the parameters. Norms are taken in
      float32 or wider; the dtypes of the gradients are kept.

    Raises:
      ValueError: in ``update``, for missing parameters or a parameter of more than five axes that
        ``unit_axes`` says nothing of.
    """

    def clip(path: Path, gradient: jax.Array, param: jax.Array) -> jax.Array:
        gradient_norm, weight_norm = _unit_norms(path, gradient, param, unit_axes)
        largest = clipping * jnp.maximum(weight_norm, eps)
        # A gradient of norm 0 is below its bound; the 1e-6 only keeps 0 / 0 out of the branch not
        # taken, whose derivative would be NaN.
        scale = largest / jnp.maximum(gradient_norm, 1e-6)
        clipped = (gradient * scale).astype(gradient.dtype)
        return jnp.where(gradient_norm < largest, gradient, clipped)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "adaptive_grad_clip compares gradients with parameters: call "
                "update(gradients, state, params)"
            )
        return jax.tree_util.tree_map_with_path(clip, updates, params), state

    transformation = optax.GradientTransformation(optax.init_empty_state, update)
    return transformation if mask is None else optax.masked(transformation, mask)


def unit_ratios(
    gradients: optax.Updates,
    params: optax.Params,
    eps: float = 1e-3,
    unit_axes: UnitAxes | None = None,
) -> Any:
    """What ``adaptive_grad_clip`` compares with its ``clipping``, to be looked at.

    Arguments are its own. Returns, in the form of the parameters, each unit's gradient norm over
    its weight norm, float32 or wider, with axes of length 1 where norms were taken.
    """

    def ratio(path: Path, gradient: jax.Array, param: jax.Array) -> jax.Array:
        gradient_norm, weight_norm = _unit_norms(path, gradient, param, unit_axes)
        return gradient_norm / jnp.maximum(weight_norm, eps)

    return jax.tree_util.tree_map_with_path(ratio, gradients, params)


def sgd_agc(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 2e-5,
    clipping: float | None = 0.01,
    eps: float = 1e-3,
) -> optax.GradientTransformation:
    """The optimizer that NFNets are trained with (section 6.1 of the paper).

    In this order: AGC on everything except the classifier's weight matrix; weight decay, added to
    the clipped gradient of kernels and matrices; momentum; the learning rate.

    Args:
      learning_rate: a number or a schedule of the step.
      momentum: decay of the accumulated gradient.
      nesterov: whether the step looks ahead by one more momentum.
      weight_decay: of parameters with two axes or more: no gain, skip gain or bias.
      clipping, eps: as in ``adaptive_grad_clip``; a ``clipping`` of None leaves AGC out.
    """
    agc = optax.identity()
    if clipping is not None:
        agc = adaptive_grad_clip(clipping, eps, mask=all_but_classifier)
    return optax.chain(
        agc,
        optax.add_decayed_weights(weight_decay, mask=kernels),
        _momentum(momentum, nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )


def _momentum(decay: float, nesterov: bool) -> optax.GradientTransformation:
    """``optax.trace`` that steps from the accumulated gradient as it was written to memory.

    XLA would compute it once more for the step; reading the old one a second time, it could then
    not be replaced in place.
    """
    accumulate = optax.trace(decay)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        state = jax.lax.optimization_barrier(accumulate.update(updates, state, params)[1])
        if not nesterov:
            return state.trace, state
        return jax.tree.map(lambda g, trace: g + decay * trace, updates, state.trace), state

    return optax.GradientTransformation(accumulate.init, update)


def all_but_classifier(params: optax.Params) -> Any:
    """A mask: false for the weight matrix that makes the logits, true for everything else.

    The classifier is told by its name: a matrix ``w`` or ``kernel`` of a layer called ``linear``,
    ``logits``, ``classifier``, ``head`` or ``fc`` that belongs to the network itself and not to a
    block of it (Haiku's ``NFNet/~/linear``; not ``NFNet/~/nf_block/~/squeeze_excite/~/linear``).
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_classifier(path), params)


def kernels(params: optax.Params) -> Any:
    """A mask: true for parameters with two axes or more, false for gains, biases and scalars."""
    return jax.tree.map(lambda param: jnp.ndim(param) > 1, params)


_CLASSIFIER = re.compile(r"(params/)?([^/]+/)?(~/)?(linear|logits|classifier|head|fc)/(w|kernel)")


def _is_classifier(path: Path) -> bool:
    return _CLASSIFIER.fullmatch(_name(path)) is not None


def _name(path: Path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _unit_norms(
    path: Path, gradient: jax.Array, param: jax.Array, unit_axes: UnitAxes | None
) -> tuple[jax.Array, jax.Array]:
    axes = unit_axes(path, param) if unit_axes else None
    if axes is None:
        axes = _axes_by_rank(path, param)
    return _norm(gradient, axes), _norm(param, axes)


def _axes_by_rank(path: Path, param: jax.Array) -> tuple[int, ...]:
    if sum(length != 1 for length in param.shape) <= 1:
        return tuple(range(param.ndim))
    if param.ndim not in _AXES_BY_RANK:
        raise ValueError(
            f"{_name(path)} has {param.ndim} axes, {param.shape}: say with unit_axes which of them "
            "run inside a unit"
        )
    return _AXES_BY_RANK[param.ndim]


def _norm(x: jax.Array, axes: int | Sequence[int]) -> jax.Array:
    """The norm over ``axes``, which stay as axes of length 1, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.real(wide * jnp.conj(wide)) if jnp.iscomplexobj(wide) else jnp.square(wide)
    axes = axes if isinstance(axes, int) else tuple(axes)
    return jnp.sqrt(jnp.sum(squares, axis=axes, keepdims=True))
