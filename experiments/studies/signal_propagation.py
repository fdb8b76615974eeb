"""Tests which parts of an NF-ResNet keep its signal in bounds at initialization.

NF-ResNets (Brock et al. 2021a, arXiv:2101.08692, section 3) claim that scaled weight
standardization, scaled activations and beta together keep the variance of the signal at a value
known in advance, and its mean near zero.

    python -m experiments.studies.signal_propagation --budget=cpu

Design: Gaussian noise passes through networks as they are initialized. After each residual block
the paper's three curves are measured: the average channel variance, the average squared channel
mean, here over that variance, and the variance of the branch. An NF-ResNet loses its standardized
kernels, its scaled activations and its betas, one at a time; an NFNet, a ResNet with batch
normalization and a ResNet with nothing in its place stand beside it. Scales of branches that start
at zero are set to one, or the branches would not show.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import nfnets_jax
from nfnets_jax.models import layers

from . import command, grid, results


class Budget(NamedTuple):
    """The size of the study.

    Attributes:
      image_size: side of the images in pixels.
      images: number of them.
      seeds: of parameters and images.
      width_divisor: the networks have this fraction of their published width.
    """

    image_size: int
    images: int
    seeds: int
    width_divisor: int


BUDGETS = {
    "smoke": Budget(64, 8, seeds=1, width_divisor=8),
    "cpu": Budget(128, 16, seeds=3, width_divisor=1),
    "gpu": Budget(224, 64, seeds=5, width_divisor=1),
}
INTACT, UNSTANDARDIZED = "none", "kernels not standardized"
UNSCALED, NO_BETA = "activations not scaled", "no beta"
_NETWORKS = (
    ("nf_resnet50", INTACT),
    ("nf_resnet50", UNSTANDARDIZED),
    ("nf_resnet50", UNSCALED),
    ("nf_resnet50", NO_BETA),
    ("nfnet_f0", INTACT),
    ("resnet50", INTACT),
    ("unnormalized_resnet50", INTACT),
)
_CURVES = {
    "variance": "variance",
    "squared_mean": "squared mean / variance",
    "branch_variance": "variance of the branch",
}

# By key of ``_CURVES``, the values after each residual block, ``[blocks]``.
Curves = dict[str, np.ndarray]


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Measures all networks; needs no data."""
    del data_dir
    design = BUDGETS[budget]

    def run(settings: grid.Settings) -> dict[str, list[float | None]]:
        curves = measure(settings["network"], settings["change"], design, settings["seed"])
        return {
            name: [None if np.isnan(value) else float(value) for value in values]
            for name, values in curves.items()
        }

    conditions = {"budget": budget, **design._asdict()}
    members = [
        {"network": network, "change": change, "seed": seed}
        for network, change in _NETWORKS
        for seed in range(design.seeds)
    ]
    rows = grid.run_grid(workdir, conditions, members, run)
    curves = {member: _mean_curves(rows, *member) for member in _NETWORKS}
    return results.Results(
        conditions, rows, [_table(curves)], {"signal_propagation": _draw(curves)}
    )


def measure(network: str, change: str, design: Budget, seed: int) -> Curves:
    """Measures the signal after each residual block of a network.

    Args:
      network: a registered name.
      change: what an NF-ResNet or NFNet loses: ``INTACT``, ``UNSTANDARDIZED``, ``UNSCALED`` or
        ``NO_BETA``.
      design: size of the images and of the network.
      seed: of parameters and images.

    Returns:
      ``variance``, the average over channels; ``squared_mean``, over that variance;
      ``branch_variance``, NaN for blocks with a convolution on their shortcut.
    """
    params_key, images_key, change_key = jax.random.split(jax.random.key(seed), 3)
    size = design.image_size
    noise = jax.random.normal(images_key, (design.images, size, size, 3))
    if network.startswith("nf"):
        outputs = _normalizer_free(network, change, design.width_divisor)
    else:
        outputs = _resnet(network, design.width_divisor)
    return _curves(jax.device_get(outputs(noise, params_key, change_key)))


# Called as ``outputs(images, params_key, change_key)``; returns the output of each residual block.
Outputs = Callable[[jax.Array, jax.Array, jax.Array], list[jax.Array]]


@functools.cache
def _normalizer_free(name: str, change: str, width_divisor: int) -> Outputs:
    """Returns the compiled network; every block is a stage, so that ``features`` has its output."""
    published = nfnets_jax.create_model(name).config
    strides = [
        stride if block == 0 else 1
        for depth, stride in zip(published.depth, published.strides, strict=True)
        for block in range(depth)
    ]
    width = np.repeat(published.width, published.depth) // width_divisor
    model = nfnets_jax.create_model(
        name,
        features=True,
        width=tuple(map(int, width)),
        depth=(1,) * len(strides),
        strides=tuple(strides),
        stem=tuple((max(8, width // width_divisor), stride) for width, stride in published.stem),
        group_size=published.group_size and published.group_size // width_divisor,
    )

    @jax.jit
    def outputs(images: jax.Array, params_key: jax.Array, change_key: jax.Array) -> list[jax.Array]:
        params, state = model.init(params_key, images)
        weights = model.prepare(rescale(params, change, model.config), images)
        if change == UNSTANDARDIZED:
            weights = draw_kernels(weights, change_key)
        stages, _ = model.forward(weights, state, None, images, False)
        return [stages[f"stage_{number}"] for number in range(1, len(strides) + 1)]

    return outputs


def rescale(params: hk.Params, change: str, config: Any) -> hk.Params:
    """Sets skip gains to one and moves a missing beta or activation gain into the kernels' gains.

    All convolutions of a block follow a scaled activation, and ``conv0`` and ``conv_shortcut`` also
    follow beta: dividing their gain by either factor computes the same as leaving the factor out.

    Args:
      params: with one block per stage.
      change: as ``measure`` takes it.
      config: of the network.
    """
    betas = dict(zip(itertools.chain(*config.block_names), config.betas, strict=True))

    def value(module: str, name: str, array: jax.Array) -> jax.Array:
        if name == "skip_gain":
            return jnp.ones_like(array)
        block, _, layer = module.rpartition("/~/")
        if name == "gain" and "block" in block:
            if change == UNSCALED:
                return array / layers.ACTIVATION_GAINS[config.activation]
            if change == NO_BETA and layer in ("conv0", "conv_shortcut"):
                return array / betas[block.rpartition("/~/")[2]]
        return array

    return {
        module: {name: value(module, name, array) for name, array in arrays.items()}
        for module, arrays in params.items()
    }


def draw_kernels(weights: hk.Params, key: jax.Array) -> hk.MutableParams:
    """Replaces all standardized kernels by draws with variance one over their fan-in."""

    def drawn(kernel: jax.Array, key: jax.Array) -> jax.Array:
        fan_in = math.prod(kernel.shape[:-1])
        return jax.random.normal(key, kernel.shape, kernel.dtype) * fan_in**-0.5

    keys = iter(jax.random.split(key, len(weights)))
    return {
        module: {**values, "w": drawn(values["w"], next(keys))} if _is_conv(values) else {**values}
        for module, values in weights.items()
    }


def _is_conv(values: Mapping[str, jax.Array]) -> bool:
    return "w" in values and values["w"].ndim == 4


@functools.cache
def _resnet(name: str, width_divisor: int) -> Outputs:
    """Returns the compiled network, with all normalization scales at one."""
    published = nfnets_jax.create_model(name).config
    model = nfnets_jax.create_model(
        name,
        width=tuple(width // width_divisor for width in published.width),
        group_width=published.group_width // width_divisor,
    )
    blocks: list[jax.Array] = []

    def keep_output(
        call: Callable[..., Any], args: Any, kwargs: Any, context: hk.MethodContext
    ) -> jax.Array:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and type(context.module).__name__ == "_Block":
            blocks.append(output)
        return output

    @jax.jit
    def outputs(images: jax.Array, params_key: jax.Array, change_key: jax.Array) -> list[jax.Array]:
        del change_key
        params, state = model.init(params_key, images)
        params = {
            module: {k: jnp.ones_like(v) if k == "scale" else v for k, v in arrays.items()}
            for module, arrays in params.items()
        }
        blocks.clear()
        with hk.intercept_methods(keep_output):
            model.apply(params, state, None, images, is_training=True)
        return list(blocks)

    return outputs


def _curves(outputs: Sequence[np.ndarray]) -> Curves:
    def variance(x: np.ndarray) -> float:
        return float(np.mean(np.var(x, axis=(0, 1, 2))))

    branches = [np.nan] + [
        variance(after - before) if after.shape == before.shape else np.nan
        for before, after in itertools.pairwise(outputs)
    ]
    variances = np.array([variance(x) for x in outputs])
    squared_means = np.array([np.mean(np.mean(x, axis=(0, 1, 2)) ** 2) for x in outputs])
    return {
        "variance": variances,
        "squared_mean": squared_means / variances,
        "branch_variance": np.array(branches),
    }


def predicted_variances(name: str) -> np.ndarray | None:
    """Returns the predicted variance after each block, ``[blocks]``; None for a ResNet."""
    if not name.startswith("nf"):
        return None
    config = nfnets_jax.create_model(name).config
    # A block adds alpha**2 to its input's variance, which a transition first resets to one.
    variances, channels = [], config.stem[-1][0]
    stages = zip(config.width, config.depth, config.strides, strict=True)
    betas = iter(config.betas)
    for width, depth, stride in stages:
        for block in range(depth):
            beta = next(betas)
            resets = block == 0 and (stride > 1 or width != channels)
            variances.append((1.0 if resets else beta**-2) + config.alpha**2)
        channels = width
    return np.array(variances)


def _mean_curves(rows: Sequence[grid.Row], network: str, change: str) -> Curves:
    own = [row for row in rows if (row["network"], row["change"]) == (network, change)]
    return {name: np.mean([np.array(row[name], float) for row in own], axis=0) for name in _CURVES}


def _label(network: str, change: str) -> str:
    return network if change == INTACT else f"{network}, {change}"


def _table(curves: Mapping[tuple[str, str], Curves]) -> str:
    lines = []
    for (network, change), curve in curves.items():
        predicted = predicted_variances(network)
        error = None
        if predicted is not None:
            error = float(np.abs(curve["variance"] / predicted - 1).max())
        largest = (float(curve[name].max()) for name in ("variance", "squared_mean"))
        lines.append((_label(network, change), *largest, error))
    return results.table(
        "Largest values over all blocks, means over the seeds. The error is that of the variance, "
        "relative to its prediction; a dash where nothing is predicted.",
        ("network", "variance", "squared mean / variance", "error"),
        lines,
    )


def _draw(curves: Mapping[tuple[str, str], Curves]) -> Figure:
    figure = Figure(figsize=(14, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(_CURVES))
    for panel, (name, title) in zip(panels, _CURVES.items(), strict=True):
        for (network, change), curve in curves.items():
            blocks = np.arange(1, len(curve[name]) + 1)
            panel.plot(blocks, curve[name], ".-", label=_label(network, change))
            predicted = predicted_variances(network)
            if name == "variance" and change == INTACT and predicted is not None:
                panel.plot(blocks, predicted, "k:", zorder=3)
        panel.set(xlabel="residual block", title=title, yscale="log")
        panel.grid(alpha=0.3)
    panels[0].plot([], [], "k:", label="predicted")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    command.run("signal_propagation", __doc__, study)
