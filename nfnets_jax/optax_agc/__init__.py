"""Adaptive Gradient Clipping for any JAX project; needs jax and optax alone.

AGC (Brock et al. 2021, arXiv:2102.06171, section 4) bounds how far one step can move a unit of a
layer, as a share of how long the unit's weights are. With ``W_i`` the weights that feed output unit
``i`` and ``G_i`` their gradient,

    ``G_i <- G_i * min(1, clipping * max(|W_i|, eps) / |G_i|)``

Which axes of an array run inside a unit is a matter of the framework: ``unit_axes=haiku``,
``flax``, ``equinox`` or ``pytorch`` knows them, and refuses what it cannot tell.

Example:
  >>> import jax.numpy as jnp
  >>> import optax
  >>> from nfnets_jax import optax_agc
  >>> agc = optax_agc.adaptive_grad_clip(0.01, unit_axes=optax_agc.haiku)
  >>> optimizer = optax.chain(agc, optax.sgd(0.1))
  >>> params = {"linear": {"w": jnp.ones((4, 2))}}
  >>> updates, state = optimizer.update(params, optimizer.init(params), params)
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

Path = tuple[Any, ...]
Axes = int | Sequence[int]
UnitAxes = Axes | Callable[[Path, jax.Array], Axes | None]
Limit = float | jax.Array | Callable[[jax.Array], Any]
Clipping = Limit | Mapping[str, Limit | None]
Mask = Any | Callable[[optax.Params], Any]

# Where optax has a rule for the rank, these axes run inside a unit: [I, O], [I, heads, O], HWIO,
# DHWIO.
_AXES_BY_RANK = {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}


class ScheduleState(NamedTuple):
    """Of ``adaptive_grad_clip`` by a schedule: the steps so far, int32 ``[]``."""

    step: jax.Array


def adaptive_grad_clip(
    clipping: Clipping = 0.01,
    eps: float = 1e-3,
    unit_axes: "UnitAxes | Convention | None" = None,
    mask: Mask | None = None,
    *,
    partition_specs: Any = None,
) -> optax.GradientTransformation:
    """Clips each unit's gradient to ``clipping`` times the norm of the unit's weights.

    The same as ``optax.adaptive_grad_clip`` where both are defined. A unit whose gradient is not
    finite passes as it came; ``with_statistics`` counts such units.

    Args:
      clipping: largest allowed ratio of a unit's gradient norm to its weight norm: a number, a
        schedule of the step, or a mapping of regular expressions to either. Of a mapping, the first
        expression found in the parameter's name (``layer/kernel``) decides, and None clips nothing.
      eps: lower bound of the weight norm, so that a unit at zero can leave it.
      unit_axes: the axes that run inside a unit, over which the norms are taken: ``haiku``,
        ``flax``, ``equinox`` or ``pytorch``; a function ``(path, parameter) -> axes``; or axes for
        all. Where it is None or returns None, the rank tells as in optax: all axes of a scalar or a
        vector, all but the last of ``[I, O]`` matrices, HWIO and DHWIO kernels, the first of three.
      mask: a tree of booleans in the form of the parameters or of their upper part, or a function
        from the parameters to it; true where to clip. None clips all. ``all_but_classifier`` is
        what the paper does.
      partition_specs: inside ``jax.shard_map`` alone, the parameters' ``PartitionSpec``s, a tree as
        ``mask``; a unit that is split over devices is then measured whole. Under ``jax.jit`` this
        comes by itself.

    Returns:
      A transformation whose ``update`` needs the parameters, without state unless ``clipping`` is a
      schedule. Norms are taken in float32 or wider; the dtypes of the gradients are kept. Weights
      whose norm is too large for its dtype's square count as infinitely long.

    Raises:
      ValueError: in ``update``, naming the parameter: parameters not passed, trees or shapes that
        differ, axes out of range, units that cannot be told, no ``clipping`` for a name.
    """

    def init(params: optax.Params) -> optax.OptState:
        del params
        return ScheduleState(jnp.zeros((), jnp.int32)) if has_schedule else optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        leaves = _leaves(updates, params, unit_axes, mask, partition_specs)
        step = state.step if has_schedule else None
        clipped = iter(_clip(leaves, clipping, eps, step))
        updates = jax.tree.map(lambda _: next(clipped), updates)
        return updates, ScheduleState(optax.safe_increment(step)) if has_schedule else state

    values = clipping.values() if isinstance(clipping, Mapping) else [clipping]
    has_schedule = any(map(callable, values))
    return optax.GradientTransformation(init, update)


def sgd_agc(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 2e-5,
    clipping: Clipping | None = 0.01,
    eps: float = 1e-3,
    unit_axes: "UnitAxes | Convention | None" = None,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """The optimizer that NFNets are trained with (section 6.1 of the paper).

    In this order: AGC on everything except the classifier's weight matrix; weight decay, added to
    the clipped gradient of kernels and matrices; momentum; the learning rate.

    Args:
      learning_rate: a number or a schedule of the step.
      momentum: decay of the accumulated gradient.
      nesterov: whether the step looks ahead by one more momentum.
      weight_decay: of ``kernels``: no gain, skip gain or bias.
      clipping, eps, unit_axes: as in ``adaptive_grad_clip``; a ``clipping`` of None leaves AGC out.
      mask: likewise, but None is ``all_but_classifier``; True clips the classifier, too.
    """
    return optax.chain(
        _agc(clipping, eps, unit_axes, mask),
        optax.add_decayed_weights(weight_decay, functools.partial(kernels, unit_axes=unit_axes)),
        _momentum(momentum, nesterov),
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
    unit_axes: "UnitAxes | Convention | None" = None,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) of clipped gradients.

    In this order: AGC, Adam's moments, weight decay of kernels and matrices, the learning rate.

    Args:
      learning_rate: a number or a schedule of the step.
      b1, b2: decay of the first and of the second moment.
      weight_decay: of ``kernels``.
      clipping, eps, unit_axes, mask: as in ``sgd_agc``.
      adam_eps: what Adam adds to the root of the second moment.
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
    clipping: Clipping | None,
    eps: float,
    unit_axes: "UnitAxes | Convention | None",
    mask: Mask | None,
) -> optax.GradientTransformation:
    if clipping is None:
        return optax.identity()
    mask = all_but_classifier if mask is None else mask
    return adaptive_grad_clip(clipping, eps, unit_axes, mask)


def _momentum(decay: float, nesterov: bool) -> optax.GradientTransformation:
    """``optax.trace`` that steps from the accumulated gradient as it was written to memory."""
    accumulate = optax.trace(decay)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        state = materialized(accumulate.update(updates, state, params)[1])
        if not nesterov:
            return state.trace, state
        return jax.tree.map(lambda g, trace: g + decay * trace, updates, state.trace), state

    return optax.GradientTransformation(accumulate.init, update)


@jax.custom_jvp
def materialized(arrays: Any) -> Any:
    """A tree of arrays as it is, large ones of floats written to memory: none is computed twice.

    XLA would, inside of whatever reads them, and whatever they are made of could then not be
    replaced in place. Its CPU backend (jax 0.10.2) drops ``lax.optimization_barrier`` before it
    decides; there the arrays pass by a loop that is never entered, which XLA cannot know.
    """
    if jax.default_backend() != "cpu":
        return lax.optimization_barrier(arrays)
    leaves, form = jax.tree.flatten(arrays)
    large = [leaf for leaf in leaves if _is_large(leaf)]
    if not large:
        return arrays
    # To XLA, any number times 0 may be negative.
    enters = jnp.real(large[0][(0,) * large[0].ndim]) * 0 < 0
    _, large = lax.while_loop(
        lambda loop: loop[0],
        lambda loop: (~loop[0], jax.tree.map(jnp.negative, loop[1])),
        (enters, large),
    )
    written = iter(large)
    return jax.tree.unflatten(form, [next(written) if _is_large(leaf) else leaf for leaf in leaves])


@materialized.defjvp
def _materialized_derivative(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return materialized(*primals), tangents[0]


def _is_large(array: jax.Array) -> bool:
    # Smaller ones are as well computed twice as written: each that is written is compiled for.
    return array.size >= 2**14 and jnp.issubdtype(array.dtype, jnp.inexact)


class UnitStatistics(NamedTuple):
    """Of one parameter's units at one step; scalars but for ``ratios``.

    Attributes:
      units: how many there are, float32.
      clipped: share of them whose ratio is above ``clipping``, float32.
      ratios: quantiles of the ratio, gradient norm over weight norm, float32 ``[levels]``.
      nonfinite: units whose gradient was not finite, so far, int32.
    """

    units: jax.Array
    clipped: jax.Array
    ratios: jax.Array
    nonfinite: jax.Array


class StatisticsState(NamedTuple):
    """The state of ``with_statistics``.

    Attributes:
      step: steps so far, int32 ``[]``.
      levels: of the quantiles, float32 ``[levels]``.
      parameters: ``UnitStatistics`` in the form of the parameters.
      inner: the optimizer's own state.
    """

    step: jax.Array
    levels: jax.Array
    parameters: Any
    inner: optax.OptState


def with_statistics(
    optimizer: optax.GradientTransformation,
    clipping: Clipping = 0.01,
    eps: float = 1e-3,
    unit_axes: "UnitAxes | Convention | None" = None,
    mask: Mask | None = None,
    *,
    quantiles: Sequence[float] = (0.5, 0.9, 1.0),
    every: int = 1,
    partition_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that remembers how hard the gradients that came in were to be clipped.

    Nothing leaves the device until ``summarize`` is called. Under ``jax.jit`` XLA computes the
    norms once for this and for the clipping inside ``optimizer``. It clips nothing by itself, so
    that it can also be put around an optimizer without AGC, to see what AGC would do.

    Args:
      optimizer: any, such as ``sgd_agc(0.1)``.
      clipping, eps, unit_axes, mask, partition_specs: what counts as clipped, as in
        ``adaptive_grad_clip``. Parameters that the mask spares have ratios, none of them clipped.
      quantiles: of the ratios, between 0 and 1.
      every: steps between two looks at the quantiles, which sort the units; all else is of every
        step.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> StatisticsState:
        levels = jnp.asarray(quantiles, jnp.float32)
        # Each an array of its own, so that the state can be donated.
        parameters = jax.tree.map(
            lambda _: UnitStatistics(
                jnp.zeros(()), jnp.zeros(()), jnp.zeros(levels.shape), jnp.zeros((), jnp.int32)
            ),
            params,
        )
        return StatisticsState(jnp.zeros((), jnp.int32), levels, parameters, inner.init(params))

    def update(
        updates: optax.Updates,
        state: StatisticsState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, StatisticsState]:
        leaves = _leaves(updates, params, unit_axes, mask, partition_specs)
        before = {
            _name(path): statistics
            for path, statistics in jax.tree_util.tree_leaves_with_path(
                state.parameters, is_leaf=_is_statistics
            )
        }
        now = dict(before)
        look_now = every == 1 or state.step % every == 0
        old = [before[leaf.name] for leaf in leaves]
        seen = _statistics(leaves, clipping, eps, state.levels, state.step, old, look_now)
        for leaf, new in zip(leaves, seen, strict=True):
            nonfinite = before[leaf.name].nonfinite + new.nonfinite
            now[leaf.name] = new._replace(nonfinite=nonfinite)
        parameters = jax.tree.unflatten(
            jax.tree.structure(state.parameters, is_leaf=_is_statistics), now.values()
        )
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        step = optax.safe_increment(state.step)
        return updates, StatisticsState(step, state.levels, parameters, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def summarize(state: optax.OptState) -> dict[str, float]:
    """Figures for a log, from the ``with_statistics`` in an optimizer's state.

    Returns, on the host, for each parameter ``NAME/clipped``, ``NAME/nonfinite`` and
    ``NAME/ratio_pLEVEL``, LEVEL in percent; and of all units together, ``clipped`` and
    ``nonfinite``.

    Raises:
      ValueError: there is no such state, or more than one.
    """
    found = [
        leaf
        for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, StatisticsState))
        if isinstance(leaf, StatisticsState)
    ]
    if len(found) != 1:
        raise ValueError(f"summarize: the state has {len(found)} of with_statistics, not one")
    parameters, levels = jax.device_get((found[0].parameters, found[0].levels))
    figures, units, clipped, nonfinite = {}, 0.0, 0.0, 0
    for path, seen in jax.tree_util.tree_leaves_with_path(parameters, is_leaf=_is_statistics):
        name = _name(path)
        figures[f"{name}/clipped"] = float(seen.clipped)
        for level, ratio in zip(levels, seen.ratios, strict=True):
            figures[f"{name}/ratio_p{100 * level:g}"] = float(ratio)
        figures[f"{name}/nonfinite"] = float(seen.nonfinite)
        units, clipped = units + seen.units, clipped + seen.units * seen.clipped
        nonfinite += seen.nonfinite
    return {"clipped": float(clipped / max(units, 1)), "nonfinite": float(nonfinite), **figures}


def unit_ratios(
    gradients: optax.Updates,
    params: optax.Params,
    eps: float = 1e-3,
    unit_axes: "UnitAxes | Convention | None" = None,
) -> Any:
    """What ``adaptive_grad_clip`` compares with its ``clipping``, to be looked at.

    Arguments are its own. Returns, in the form of the gradients, each unit's gradient norm over its
    weight norm, float32 or wider, with axes of length 1 where norms were taken.
    """
    norms = _norms(_leaves(gradients, params, unit_axes))
    ratios = (gradient / jnp.maximum(weight, eps) for gradient, weight in norms)
    return jax.tree.map(lambda _: next(ratios), gradients)


def unit_statistics(
    gradients: optax.Updates,
    params: optax.Params,
    clipping: Clipping = 0.01,
    eps: float = 1e-3,
    unit_axes: "UnitAxes | Convention | None" = None,
    mask: Mask | None = None,
    *,
    quantiles: Sequence[float] = (0.5, 0.9, 1.0),
) -> Any:
    """``UnitStatistics`` in the form of the gradients; arguments as of ``with_statistics``."""
    leaves = _leaves(gradients, params, unit_axes, mask)
    found = iter(_statistics(leaves, clipping, eps, jnp.asarray(quantiles, jnp.float32)))
    return jax.tree.map(lambda _: next(found), gradients)


def all_but_classifier(params: optax.Params) -> Any:
    """A mask: false for the weight matrix that makes the logits, true for everything else.

    The classifier is told by its name: a matrix ``w``, ``kernel`` or ``weight`` of a layer called
    ``linear``, ``logits``, ``classifier``, ``head``, ``lm_head`` or ``fc`` that belongs to the
    network itself and not to a block of it (Haiku's ``NFNet/~/linear``; not
    ``NFNet/~/nf_block/~/squeeze_excite/~/linear``).
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_classifier(path), params)


def all_but(*patterns: str) -> Callable[[optax.Params], Any]:
    """A mask: false for parameters in whose names (``layer/kernel``) a regular expression is found.

    Raises:
      ValueError: when it is used, an expression is found in no name.
    """

    def mask(params: optax.Params) -> Any:
        names = [_name(path) for path, _ in _with_paths(params)]
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise ValueError(f"all_but: no parameter has {pattern!r} in its name")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not any(re.search(pattern, _name(path)) for pattern in patterns), params
        )

    return mask


def kernels(params: optax.Params, unit_axes: "UnitAxes | Convention | None" = None) -> Any:
    """A mask: true for parameters with two axes or more, false for gains, biases and scalars.

    Axes that count layers, which ``unit_axes`` knows if it is a ``Convention``, are none of them.
    """
    named = _with_paths(params)
    known = _siblings({_name(path): jnp.shape(param) for path, param in named})

    def is_kernel(path: Path, param: jax.Array) -> bool:
        counting = 0
        if isinstance(unit_axes, Convention):
            counting = unit_axes.layer_axes(known[_name(path)])
        return jnp.ndim(param) - counting > 1

    return jax.tree_util.tree_map_with_path(is_kernel, params)


_CLASSIFIER = re.compile(
    r"(params/)?([^/]+/)?(~/)?(linear|logits|classifier|head|lm_head|fc)[/.](w|kernel|weight)"
)


def _is_classifier(path: Path) -> bool:
    return _CLASSIFIER.fullmatch(_name(path)) is not None


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What a convention knows of a parameter.

    Attributes:
      layer: the names on the way to it, outermost first.
      name: its own.
      shape: its own.
      siblings: shapes of the parameters of the same layer, by name.
    """

    layer: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    siblings: Mapping[str, tuple[int, ...]]

    def without_first_axis(self) -> "Parameter":
        """One of the equal layers that the first axis counts."""
        siblings = {name: shape[1:] for name, shape in self.siblings.items()}
        return dataclasses.replace(self, shape=self.shape[1:], siblings=siblings)

    @property
    def is_vector(self) -> bool:
        """Whether at most one axis is longer than 1."""
        return _is_vector(self.shape)


@dataclasses.dataclass(frozen=True)
class Convention:
    """How a framework lays out its layers, told from names and shapes.

    A layer whose units cannot be told is an error: ``stacked`` and ``override`` say what it is.

    Attributes:
      name: for messages.
      rule: the axes inside a unit, of one layer's parameter; None if it cannot be told.
      stack: a regular expression; a part of a parameter's name that matches it whole means a first
        axis that counts equal layers.
      first: asked before the rule, ``(path, parameter) -> axes`` or None.
    """

    name: str
    rule: Callable[[Parameter], tuple[int, ...] | None]
    stack: str = "(?!)"
    first: Callable[[Path, jax.Array], Axes | None] | None = None

    def stacked(self, layers: str) -> "Convention":
        """The same, where the first axis of the parameters of some layers counts equal layers.

        ``layers`` is a regular expression: what a part of the parameter's name, between slashes,
        must match whole. Flax's ``nn.scan`` and ``nnx.vmap`` make such layers, and Equinox's
        ``filter_vmap``.
        """
        return dataclasses.replace(self, stack=f"{self.stack}|{layers}")

    def override(self, unit_axes: Callable[[Path, jax.Array], Axes | None]) -> "Convention":
        """The same, but where ``(path, parameter) -> axes`` does not return None, that is taken."""
        return dataclasses.replace(self, first=unit_axes)

    def layer_axes(self, param: Parameter) -> int:
        """How many of a parameter's first axes count equal layers."""
        return sum(re.fullmatch(self.stack, part) is not None for part in param.layer)

    def axes(self, param: Parameter) -> tuple[int, ...]:
        """The axes of a parameter that run inside a unit, counted from 0.

        Raises:
          ValueError: they cannot be told.
        """
        stacks = self.layer_axes(param)
        one = param
        for _ in range(stacks):
            one = one.without_first_axis()
        axes = tuple(range(len(one.shape))) if one.is_vector else self.rule(one)
        if axes is None:
            name = "/".join((*param.layer, param.name))
            raise ValueError(
                f"the units of {name}, {param.shape}, cannot be told from names and shapes: say "
                f"unit_axes={self.name}.override(...), or {self.name}.stacked(...) if its first "
                "axis counts layers"
            )
        return tuple(stacks + axis for axis in axes)


def _all_but(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i in range(len(shape)) if i != axis % len(shape))


def _is_embedding(param: Parameter) -> bool:
    """A table of vectors: each is a unit, as it is looked up, and as it makes a logit if tied."""
    return "embed" in param.name and len(param.shape) in (2, 3)


def _haiku(param: Parameter) -> tuple[int, ...] | None:
    rank, shape = len(param.shape), param.shape
    bias = param.siblings.get("b")
    if _is_embedding(param):
        return (rank - 1,)
    if param.name in ("b", "scale", "offset", "bias", "gain") or rank > 5:
        return None
    if rank == 2:
        return (0,)
    if not param.name.startswith("w") or (bias and not _is_vector(bias)):
        return None
    # Transposed convolutions have [..., O, I], the others [..., I, O].
    if "transpose" in param.layer[-1]:
        return _all_but(-2, shape)
    if bias is None or math.prod(bias) == shape[-1]:
        return _all_but(-1, shape)
    return _all_but(-2, shape) if math.prod(bias) == shape[-2] else None


_PROJECTION = re.compile(r"query|key|value|qkv")
_MAY_BE_GENERAL = re.compile(r"(?i)dense|linear|einsum|query|key|value|qkv|^out")


def _flax(param: Parameter) -> tuple[int, ...] | None:
    rank, shape = len(param.shape), param.shape
    layer = param.layer[-1] if param.layer else ""
    if _is_embedding(param):
        return (rank - 1,)
    if param.name == "bias":
        kernel = param.siblings.get("kernel", ())
        return tuple(range(rank)) if _makes(kernel, shape) else None
    if param.name == "scale":
        return None
    if rank == 2:
        return (0,)
    if param.name != "kernel":
        return None
    if rank == 3 and _PROJECTION.fullmatch(layer):
        return (0,)
    if rank == 3 and layer == "out":
        return (0, 1)
    if bias := param.siblings.get("bias"):
        return tuple(range(rank - len(bias))) if _makes(shape, bias) else None
    if "conv" in layer.lower() or (rank in (4, 5) and not _MAY_BE_GENERAL.search(layer)):
        return _all_but(-1, shape)
    return None


def _makes(kernel: tuple[int, ...], bias: tuple[int, ...]) -> bool:
    """Whether a kernel ``[inputs..., outputs...]`` goes with a bias ``[outputs...]``, for sure.

    Not if both may have a first axis of layers.
    """
    outputs = len(bias)
    if len(kernel) <= outputs or kernel[-outputs:] != bias:
        return False
    return outputs == 1 or kernel[0] != bias[0] or kernel[1 - outputs :] != bias[1:]


def _output_first(param: Parameter, transposed: bool = False) -> tuple[int, ...] | None:
    rank, shape = len(param.shape), param.shape
    layer = "/".join(param.layer).lower()
    bias = param.siblings.get("bias") if param.name == "weight" else None
    if _is_embedding(param):
        return (rank - 1,)
    if "bias" in param.name or (bias is not None and not _is_vector(bias)):
        return None
    if rank == 2:
        return (1,)
    if param.name != "weight" or (bias is None and rank == 3 and "conv" not in layer):
        return None
    outputs = math.prod(bias) if bias else None
    if transposed and re.search("transpose|deconv", layer):
        return _all_but(1, shape) if outputs in (None, shape[1]) else None
    if outputs in (None, shape[0]):
        return _all_but(0, shape)
    return _all_but(1, shape) if transposed and outputs == shape[1] else None


def _pytorch(param: Parameter) -> tuple[int, ...] | None:
    return _output_first(param, transposed=True)


#: ``[I, O]``, ``WIO``, ``HWIO``, ``DHWIO``; ``[..., O, I]`` of transposed convolutions; the vectors
#: of ``hk.Embed``; layers of ``hk.experimental.layer_stack``.
haiku = Convention("haiku", _haiku, stack="__layer_stack.*")

#: Linen and NNX: ``[inputs..., outputs...]`` of ``Dense``, ``DenseGeneral``, attention and
#: convolutions; the vectors of ``Embed``; layers of ``nn.scan`` by Linen's names, ``ScanBlock_0``.
#: Of kernels with more than two axes and no known name, the bias says which are outputs.
flax = Convention("flax", _flax, stack="Scan[A-Z].*")

#: ``[O, I]`` and ``[O, I, ...]``, transposed convolutions likewise; the rows of ``Embedding``.
equinox = Convention("equinox", _output_first)

#: As Equinox, but ``[I, O, ...]`` of transposed convolutions, told by their name or their bias.
pytorch = Convention("pytorch", _pytorch)


class _Leaf(NamedTuple):
    """A gradient with all that is known of its parameter.

    ``parts`` are, axis by axis, the names of the mesh axes that it is split over.
    """

    name: str
    gradient: jax.Array
    param: jax.Array
    axes: tuple[int, ...]
    masked: bool
    parts: tuple[tuple[str, ...], ...]

    def mesh_axes(self) -> tuple[str, ...]:
        """Those that units are split over."""
        return tuple(name for axis in self.axes for name in self.parts[axis])


def _leaves(
    gradients: optax.Updates,
    params: optax.Params | None,
    unit_axes: "UnitAxes | Convention | None",
    mask: Mask | None = None,
    partition_specs: Any = None,
) -> list[_Leaf]:
    """The gradients that are not None, in the order of ``jax.tree.leaves``."""
    if params is None:
        raise ValueError(
            "adaptive gradient clipping compares gradients with parameters: call "
            "update(gradients, state, params)"
        )
    by_path = {_name(path): (path, jnp.asarray(x)) for path, x in _with_paths(params)}
    named = {_name(path): jnp.asarray(x) for path, x in _with_paths(gradients)}
    if lost := [name for name in named if name not in by_path]:
        raise ValueError(f"there are gradients without parameters: {', '.join(lost)}")
    absent = {_name(path) for path, x in _with_paths(gradients, none=True) if x is None}
    if lost := [name for name in by_path if name not in named and name not in absent]:
        raise ValueError(f"there are parameters without gradients: {', '.join(lost)}")
    spared = _spared(params, mask)
    specs = _specs(params, partition_specs)
    siblings = _siblings({name: param.shape for name, (_, param) in by_path.items()})
    leaves = []
    for name, gradient in named.items():
        path, param = by_path[name]
        if gradient.shape != param.shape:
            raise ValueError(f"{name}: gradient {gradient.shape}, but parameter {param.shape}")
        axes = _axes(name, path, param, unit_axes, siblings)
        parts = specs.get(name, ((),) * param.ndim)
        leaves.append(_Leaf(name, gradient, param, axes, name in spared, parts))
    return leaves


def _with_paths(tree: Any, none: bool = False) -> list[tuple[Path, Any]]:
    return jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=(lambda x: x is None) if none else None
    )


def _spared(params: optax.Params, mask: Mask | None) -> set[str]:
    """Names of the parameters that a mask leaves alone."""
    if mask is None:
        return set()
    full = jax.tree.broadcast(mask(params) if callable(mask) else mask, params)
    return {_name(path) for path, clips in _with_paths(full) if not clips}


def _specs(params: optax.Params, specs: Any) -> dict[str, tuple[tuple[str, ...], ...]]:
    """By name, axis by axis, the mesh axes that a parameter is split over."""
    if specs is None:
        return {}

    def is_spec(x: Any) -> bool:
        return isinstance(x, jax.sharding.PartitionSpec)

    full = jax.tree.broadcast(specs, params, is_leaf=is_spec)
    named = jax.tree_util.tree_leaves_with_path(full, is_leaf=is_spec)
    ranks = {_name(path): jnp.ndim(param) for path, param in _with_paths(params)}
    parts = {
        _name(path): [(x,) if isinstance(x, str) else tuple(x or ()) for x in spec]
        for path, spec in named
    }
    return {name: (*by, *[()] * (ranks[name] - len(by))) for name, by in parts.items()}


def _siblings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Parameter]:
    """What conventions ask of each parameter, by its name."""
    layers: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
    split = {name: tuple(re.split(r"[/.]", name)) for name in shapes}
    for name, shape in shapes.items():
        *layer, own = split[name]
        layers.setdefault(tuple(layer), {})[own] = shape
    return {
        name: Parameter(parts[:-1], parts[-1], shapes[name], layers[parts[:-1]])
        for name, parts in split.items()
    }


def _axes(
    name: str,
    path: Path,
    param: jax.Array,
    unit_axes: "UnitAxes | Convention | None",
    known: Mapping[str, Parameter],
) -> tuple[int, ...]:
    """Of a parameter, the axes inside a unit, each from 0 up."""
    asked = unit_axes.first if isinstance(unit_axes, Convention) else unit_axes
    axes = asked(path, param) if callable(asked) else asked
    if axes is None and isinstance(unit_axes, Convention):
        axes = unit_axes.axes(known[name])
    if axes is None:
        axes = _axes_by_rank(name, param.shape)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in axes:
        if not -param.ndim <= axis < param.ndim:
            raise ValueError(f"{name}, {param.shape}, has no axis {axis}, which unit_axes gave")
    return tuple(sorted({axis % param.ndim for axis in axes}))


def _axes_by_rank(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if _is_vector(shape):
        return tuple(range(len(shape)))
    if len(shape) not in _AXES_BY_RANK:
        raise ValueError(
            f"{name} has {len(shape)} axes, {shape}: say with unit_axes which of them run inside a "
            "unit"
        )
    return _AXES_BY_RANK[len(shape)]


def _is_vector(shape: tuple[int, ...]) -> bool:
    return sum(length != 1 for length in shape) <= 1


def _name(path: Path) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    # The leaf of a flax.nnx.Param is an attribute of it.
    of_variable = isinstance(path[-1], jax.tree_util.GetAttrKey) if path else False
    return name.removesuffix("/value") if of_variable else name


def _norms(leaves: Sequence[_Leaf]) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Of each leaf's units, the norms of gradients and weights, in float32 or wider.

    They have axes of length 1 where they were taken.
    """
    sums = [_squares(leaf.gradient, leaf.axes, leaf.mesh_axes()) for leaf in leaves]
    weights = [_root(_squares(leaf.param, leaf.axes, leaf.mesh_axes())) for leaf in leaves]
    # By the largest sum: for the sum of all, XLA would square the gradients once more.
    largest = jnp.zeros(())
    for total in sums:
        largest = jnp.maximum(largest, jnp.max(total, initial=0))
    finite = jnp.isfinite(largest)
    if names := {name for leaf in leaves for name in leaf.mesh_axes()}:
        finite = lax.pmin(finite.astype(jnp.int32), tuple(sorted(names))) > 0
    # Squares of a huge gradient overflow; only then it is read once more. There is one branch for
    # all leaves, as a GPU waits for the host at each.
    gradients = lax.cond(
        finite,
        lambda: [_root(total) for total in sums],
        lambda: [
            _huge_norm(leaf.gradient, total, leaf.axes, leaf.mesh_axes())
            for leaf, total in zip(leaves, sums, strict=True)
        ],
    )
    return zip(gradients, weights, strict=True)


# What is done to every leaf is traced once for each shape: networks have some thousand leaves.
@functools.partial(jax.jit, static_argnames=("axes", "mesh_axes"))
def _huge_norm(
    gradient: jax.Array, total: jax.Array, axes: tuple[int, ...], mesh_axes: tuple[str, ...]
) -> jax.Array:
    """The norms of the gradient's units, where ``total``, sums of squares, may have overflown."""
    limit = jnp.finfo(total.dtype)
    shrink = 2.0 ** -(5 * limit.maxexp // 8)
    shrunk = _squares(gradient, axes, mesh_axes, shrink)
    # What is finite and yet too long to be written is as long as can be written.
    norm = jnp.where(jnp.isfinite(shrunk), jnp.minimum(_root(shrunk) / shrink, limit.max), jnp.inf)
    return jnp.where(total == jnp.inf, norm, _root(total))


@functools.partial(jax.jit, static_argnames=("axes", "mesh_axes", "shrink"))
def _squares(
    x: jax.Array, axes: tuple[int, ...], mesh_axes: tuple[str, ...], shrink: float = 1.0
) -> jax.Array:
    """Sums of squares over the axes of a unit, on all devices that it is split over."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if shrink != 1:
        # Without the barrier XLA may take the square before it makes it small.
        wide = lax.optimization_barrier(wide * shrink)
    squares = jnp.real(wide * jnp.conj(wide)) if jnp.iscomplexobj(wide) else jnp.square(wide)
    total = jnp.sum(squares, axis=axes, keepdims=True)
    return lax.psum(total, mesh_axes) if mesh_axes else total


@jax.custom_jvp
def _root(squares: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0: who differentiates a step gets no NaN."""
    return jnp.sqrt(squares)


@_root.defjvp
def _root_derivative(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    root = _root(*primals)
    return root, tangents[0] * jnp.where(root == 0, 0, 0.5 / jnp.where(root == 0, 1, root))


def _limit(leaf: _Leaf, clipping: Clipping, step: jax.Array | None) -> Any:
    """The largest ratio of a parameter; None if it is not to be clipped."""
    value: Any = clipping
    if leaf.masked:
        return None
    if isinstance(clipping, Mapping):
        found = [value for pattern, value in clipping.items() if re.search(pattern, leaf.name)]
        if not found:
            raise ValueError(
                f"clipping says nothing of {leaf.name}: add '' for all that is not named"
            )
        value = found[0]
    return value(step) if callable(value) else value


def _clip(
    leaves: Sequence[_Leaf], clipping: Clipping, eps: float, step: jax.Array | None
) -> list[jax.Array]:
    """The leaves' gradients, clipped."""
    limits = {leaf.name: _limit(leaf, clipping, step) for leaf in leaves}
    clipped = [leaf for leaf in leaves if limits[leaf.name] is not None]
    norms = _norms(clipped)
    scales = {leaf.name: _scale(*next(norms), limits[leaf.name], eps) for leaf in clipped}
    return [
        leaf.gradient
        if leaf.name not in scales
        else (leaf.gradient * scales[leaf.name]).astype(leaf.gradient.dtype)
        for leaf in leaves
    ]


@jax.jit
def _scale(gradient_norm: jax.Array, weight_norm: jax.Array, limit: Any, eps: float) -> jax.Array:
    """What clips gradients of these norms."""
    largest = limit * jnp.maximum(weight_norm, eps)
    clips = (gradient_norm > largest) & jnp.isfinite(gradient_norm)
    # By 1 a gradient passes as it came, be it not finite. And 0 / 0 is kept out of the branch not
    # taken: its derivative would be NaN.
    return jnp.where(clips, largest / jnp.where(clips, gradient_norm, 1), 1)


def _statistics(
    leaves: Sequence[_Leaf],
    clipping: Clipping,
    eps: float,
    levels: jax.Array,
    step: jax.Array | None = None,
    before: Sequence[UnitStatistics] = (),
    look_now: jax.Array | bool = True,
) -> list[UnitStatistics]:
    """Of each leaf; where it is not time to look, with the quantiles from before."""
    limits = [_limit(leaf, clipping, step) for leaf in leaves]
    ratios = []
    for leaf, (gradient_norm, weight_norm) in zip(leaves, _norms(leaves), strict=True):
        ratio = gradient_norm / jnp.maximum(weight_norm, eps)
        finite = jnp.where(jnp.isfinite(gradient_norm), ratio, jnp.nan)
        ratios.append(_of_all_devices(finite, leaf).ravel().astype(jnp.float32))

    def look() -> list[jax.Array]:
        return [
            jnp.nanquantile(ratio, levels) if ratio.size else jnp.zeros_like(levels)
            for ratio in ratios
        ]

    if look_now is True:
        quantiles = look()
    else:
        quantiles = lax.cond(look_now, look, lambda: [old.ratios for old in before])
    statistics = []
    for limit, ratio, row in zip(limits, ratios, quantiles, strict=True):
        clipped = jnp.sum(ratio > (jnp.inf if limit is None else limit)) / max(ratio.size, 1)
        statistics.append(
            UnitStatistics(
                units=jnp.float32(ratio.size),
                clipped=clipped.astype(jnp.float32),
                ratios=row,
                nonfinite=jnp.sum(jnp.isnan(ratio), dtype=jnp.int32),
            )
        )
    return statistics


def _of_all_devices(ratio: jax.Array, leaf: _Leaf) -> jax.Array:
    """The ratios of units that other devices hold, too."""
    for axis, names in enumerate(leaf.parts):
        if names and axis not in leaf.axes:
            # As a sum, the result is known to be the same everywhere.
            shape = (lax.axis_size(names), *ratio.shape)
            ratio = lax.psum(jnp.zeros(shape).at[lax.axis_index(names)].set(ratio), names)
            ratio = jnp.concatenate(list(ratio), axis)
    return ratio


def _is_statistics(x: Any) -> bool:
    return isinstance(x, UnitStatistics)
