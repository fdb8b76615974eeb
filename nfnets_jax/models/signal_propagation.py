"""Measures how a signal passes through a network's blocks, and how its gradient passes back.

The forward figures are the signal propagation plots of Brock et al. 2021a, arXiv:2101.08692,
section 3.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.registry import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IsBlock = Callable[[hk.Module], bool]


class Signal(NamedTuple):
    """Figures after each block, in the order of the calls: float64 ``[blocks]``.

    Channels are the last axis of a block's output, and statistics are over all others.

    Attributes:
      blocks: full names of their modules.
      variance: mean over the channels of their variance.
      squared_mean: mean over the channels of their squared mean, over ``variance``.
      branch_variance: the variance of what the block adds to its input; NaN where the shapes of
        input and output differ.
      gradient: norm of the loss's gradient with respect to the block's output.
      param_gradient: norm of the loss's gradient with respect to the block's parameters.
    """

    blocks: tuple[str, ...]
    variance: np.ndarray
    squared_mean: np.ndarray
    branch_variance: np.ndarray
    gradient: np.ndarray
    param_gradient: np.ndarray


def is_named_block(module: hk.Module) -> bool:
    """Returns whether the name of a module's class ends with ``Block``."""
    return type(module).__name__.endswith("Block")


def measure(
    loss: Callable[..., jax.Array],
    params: hk.Params,
    *inputs: jax.Array,
    is_block: IsBlock = is_named_block,
) -> Signal:
    """Measures any Haiku network.

    Args:
      loss: maps parameters and inputs to a scalar by the ``apply`` of a transformed function. Its
        blocks are found while it is traced: they are in no ``jax.jit``, loop or ``hk.remat`` of
        its own.
      params: ``{module: {parameter: array}}``.
      *inputs: arrays, such as images and random numbers.
      is_block: recognizes the modules to measure by their ``__call__``, whose first argument and
        result are arrays. A block inside a block is a part of it.

    Raises:
      InputError: no block was called, or one inside a ``jax.jit``, a loop or ``hk.remat``.

    Example:
      >>> network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 8, 1])(x)))
      >>> x = jnp.ones((4, 8))
      >>> params = network.init(jax.random.key(0), x)
      >>> is_linear = lambda module: isinstance(module, hk.Linear)
      >>> loss = lambda params, x: jnp.sum(network.apply(params, x))
      >>> signal = measure(loss, params, x, is_block=is_linear)
      >>> signal.blocks
      ('mlp/~/linear_0', 'mlp/~/linear_1', 'mlp/~/linear_2')
    """
    names: list[str] = []
    shapes: list[jax.ShapeDtypeStruct] = []

    def note(name: str, x: jax.Array, output: jax.Array) -> jax.Array:
        del x
        names.append(name)
        shapes.append(jax.ShapeDtypeStruct(output.shape, output.dtype))
        return output

    jax.eval_shape(lambda *args: _call(loss, args, is_block, note), params, *inputs)
    if not names:
        raise InputError("the network called no block: is_block recognizes its modules")

    def probed(
        params: hk.Params, probes: list[jax.Array], inputs: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, Any]:
        """Adds zeros to each block's output, whose gradient is that of the output."""
        statistics: list[dict[str, jax.Array]] = []

        def probe(name: str, x: jax.Array, output: jax.Array) -> jax.Array:
            del name
            output += probes[len(statistics)]
            statistics.append(_statistics(x, output))
            return output

        return _call(loss, (params, *inputs), is_block, probe), statistics

    @jax.jit
    def run(params: hk.Params, *inputs: jax.Array) -> tuple[list[dict[str, jax.Array]], Any]:
        probes = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
        grads, statistics = jax.grad(probed, argnums=(0, 1), has_aux=True)(params, probes, inputs)
        param_grads, output_grads = grads
        own = [
            {m: values for m, values in param_grads.items() if f"{m}/".startswith(f"{name}/")}
            for name in names
        ]
        return statistics, (list(map(_norm, output_grads)), list(map(_norm, own)))

    try:
        statistics, (gradient, param_gradient) = jax.device_get(run(params, *inputs))
    except jax.errors.UnexpectedTracerError as error:
        raise InputError(
            "a block runs inside a jax.jit, a loop or hk.remat, where it cannot be measured"
        ) from error
    curves = {name: np.array([each[name] for each in statistics], float) for name in statistics[0]}
    return Signal(
        tuple(names),
        **curves,
        gradient=np.array(gradient, float),
        param_gradient=np.array(param_gradient, float),
    )


def measure_model(
    model: Model, images: jax.Array, rng: jax.Array, is_block: IsBlock = is_named_block
) -> Signal:
    """Measures a registered model as it is initialized, in training.

    Scales of branches that start at zero are set to one, or the branches would not show. The loss
    is the product of the logits with Gaussian numbers, so that no labels are needed.

    Args:
      model: from ``nfnets_jax.create_model``, with a classifier. Stochastic depth and dropout are
        off.
      images: ``[N, H, W, C]`` floats, normalized.
      rng: one random key, of the parameters and of the loss.
      is_block: as ``measure`` takes it.

    Raises:
      InputError: as ``measure``, or the model has no classifier.

    Example:
      >>> import nfnets_jax
      >>> model = nfnets_jax.create_model("nfnet_micro", num_classes=10)
      >>> noise = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
      >>> measure_model(model, noise, jax.random.key(1)).variance.shape
      (3,)
    """
    if not model.num_classes:
        raise InputError(f"{model.name} has no classifier: its gradients start from logits")
    params_key, loss_key = jax.random.split(rng)
    params, state = model.init(params_key, images)
    weights = jax.random.normal(loss_key, (len(images), model.num_classes))

    def network(images: jax.Array) -> jax.Array:
        # The published form, whose blocks are modules.
        module = model.config.network(model.num_classes, Policy(native=True), prepared=False)
        logits: jax.Array = module(images.astype(model.dtype), None, True, False)["logits"]
        return logits

    apply = hk.transform_with_state(network).apply

    def loss(
        params: hk.Params, state: hk.State, images: jax.Array, weights: jax.Array
    ) -> jax.Array:
        return jnp.sum(apply(params, state, None, images)[0] * weights)

    inputs: Any = (state, images, weights)
    return measure(loss, open_branches(params), *inputs, is_block=is_block)


def open_branches(params: hk.Params) -> hk.MutableParams:
    """Sets every ``scale``, ``gain`` and ``skip_gain`` that is zero throughout to one."""

    def opened(name: str, array: jax.Array) -> jax.Array:
        is_closed = name.endswith(("scale", "gain")) and not np.any(array)
        return jnp.ones_like(array) if is_closed else array

    return {
        module: {name: opened(name, array) for name, array in values.items()}
        for module, values in params.items()
    }


def picture(
    signals: Mapping[str, Signal], predicted: Mapping[str, np.ndarray] | None = None
) -> "Figure":
    """Draws variance, squared mean, variance of the branch, and gradient by block.

    Args:
      signals: of each network, by its label.
      predicted: variances after each block ``[blocks]``, of some of the networks, by label.

    Returns:
      A figure of Matplotlib, which has to be installed.
    """
    from matplotlib.figure import Figure

    titles = {
        "variance": "variance",
        "squared_mean": "squared mean / variance",
        "branch_variance": "variance of the branch",
        "gradient": "gradient norm over the last block's",
    }
    figure = Figure(figsize=(4 * len(titles), 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(titles))
    for panel, (field, title) in zip(panels, titles.items(), strict=True):
        for index, (label, signal) in enumerate(signals.items()):
            values = getattr(signal, field)
            if field == "gradient":
                values = values / values[-1]
            blocks = np.arange(1, len(values) + 1)
            panel.plot(blocks, values, ".-", color=f"C{index}", label=label)
            if field == "variance" and label in (predicted or {}):
                panel.plot(blocks, (predicted or {})[label], "k:", zorder=3)
        panel.set(xlabel="block", title=title, yscale="log")
        panel.grid(alpha=0.3)
    if predicted:
        panels[0].plot([], [], "k:", label="predicted")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


# Called as ``tap(module name, input, output)``; returns the output to go on with.
_Tap = Callable[[str, jax.Array, jax.Array], jax.Array]


def _call(
    loss: Callable[..., jax.Array], args: tuple[Any, ...], is_block: IsBlock, tap: _Tap
) -> jax.Array:
    """Computes the loss, with a tap on the output of each outermost block."""
    inside = False

    def intercept(
        call: Callable[..., Any], given: Any, options: Any, context: hk.MethodContext
    ) -> Any:
        nonlocal inside
        is_call = context.method_name == "__call__" and is_block(context.module)
        if inside or not is_call:
            return call(*given, **options)
        inside = True
        try:
            output = call(*given, **options)
        finally:
            inside = False
        return tap(context.module.module_name, given[0], output)

    with hk.intercept_methods(intercept):
        return loss(*args)


def _statistics(x: jax.Array, output: jax.Array) -> dict[str, jax.Array]:
    variance = _variance(output)
    means = jnp.mean(output, axis=range(output.ndim - 1))
    branch = _variance(output - x) if x.shape == output.shape else jnp.float32(jnp.nan)
    return {
        "variance": variance,
        "squared_mean": jnp.mean(means**2) / variance,
        "branch_variance": branch,
    }


def _variance(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.var(x.astype(jnp.float32), axis=range(x.ndim - 1)))


def _norm(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))
