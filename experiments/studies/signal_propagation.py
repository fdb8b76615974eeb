"""How signals pass through networks as they are initialized, and what keeps them in bounds.

    python -m experiments.studies.signal_propagation --budget=cpu

draws the three curves of a signal propagation plot (NF-ResNets, Brock et al. 2021a,
arXiv:2101.08692, section 3): after each residual block the mean channel's variance, the mean
channel's squared mean over its variance, and the variance of what the branch alone added. Networks
without normalization stand beside one with it and one with nothing in its place; an NF-ResNet loses
its standardized kernels, scaled activations and betas one by one. Images are Gaussian noise;
branches whose last scale starts at zero get one, or they would not show.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import nfnets_jax
from experiments.studies import grid
from nfnets_jax.atomic import atomic_write
from nfnets_jax.errors import InputError
from nfnets_jax.models import layers

FIGURES = {
    "variance": "variance",
    "squared_mean": "squared mean / variance",
    "branch_variance": "variance of the branch",
}
# Image side in pixels, images, seeds, and the part of the published widths.
_BUDGETS = {"smoke": (64, 8, 1, 8), "cpu": (128, 16, 3, 1), "gpu": (224, 64, 5, 1)}
_NF = "nf_resnet50"
_CHANGES = ("", "kernels not standardized", "activations not scaled", "no beta")
_NETWORKS = (
    *((_NF, change) for change in _CHANGES),
    ("nfnet_f0", ""),
    ("resnet50", ""),
    ("unnormalized_resnet50", ""),
)
# What counts as kept: variance by its prediction, squared mean over variance.
_VARIANCE_BOUND, _MEAN_BOUND = 0.15, 0.1

Curves = dict[str, np.ndarray]


def main() -> None:
    """Runs the study."""
    arguments = grid.parse(__doc__.splitlines()[0], "signal_propagation")
    size, images, seeds, part = _BUDGETS[arguments.budget]
    common = {"budget": arguments.budget, "size": size, "images": images, "width_divisor": part}
    settings = [
        {"network": network, "change": change or "none", "seed": seed}
        for network, change in _NETWORKS
        for seed in range(seeds)
    ]
    try:
        rows = grid.run_grid(
            arguments.workdir,
            common,
            settings,
            functools.partial(_run, size=size, images=images, part=part),
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    curves = {
        _label(network, change): _mean_curves(rows, network, change or "none")
        for network, change in _NETWORKS
    }
    predicted = {
        _label(network, ""): _predicted(nfnets_jax.create_model(network).config)
        for network in (_NF, "nfnet_f0")
    }
    with atomic_write(arguments.workdir / "signal_propagation.png") as partial:
        _draw(curves, predicted).savefig(partial, dpi=110, format="png")
    title = "Signal propagation at initialization"
    grid.write_report(arguments.workdir, title, rows, _verdict(curves, predicted), common)


def measure(
    name: str, change: str, *, size: int, images: int, part: int = 1, seed: int = 0
) -> Curves:
    """The figures after each residual block of a network, ``[blocks]`` each.

    Args:
      name: of the model.
      change: what an NF-ResNet or NFNet loses, one of ``_CHANGES``.
      size, images: of the noise that goes in, ``[images, size, size, 3]``.
      part: the network has so much less width than published.
      seed: of parameters and images.

    Returns:
      ``variance``, the mean channel's; ``squared_mean``, over the variance; ``branch_variance``,
      NaN for blocks whose shortcut has a convolution, too.
    """
    params_key, images_key, change_key = jax.random.split(jax.random.key(seed), 3)
    noise = jax.random.normal(images_key, (images, size, size, 3))
    if name.startswith("nf"):
        outputs = _normalizer_free(name, change, part, noise, (params_key, change_key))
    else:
        outputs = _resnet(name, part, noise, params_key)
    return _curves(outputs)


def _run(settings: Mapping[str, Any], size: int, images: int, part: int) -> dict[str, float]:
    change = "" if settings["change"] == "none" else settings["change"]
    curves = measure(
        settings["network"], change, size=size, images=images, part=part, seed=settings["seed"]
    )
    return {
        f"{name}_{block}": float(value)
        for name, values in curves.items()
        for block, value in enumerate(values, 1)
    }


def _normalizer_free(
    name: str, change: str, part: int, images: jax.Array, keys: tuple[jax.Array, jax.Array]
) -> list[np.ndarray]:
    """What each block gives, of a network with one block a stage, so that all are to be seen."""
    published = nfnets_jax.create_model(name).config
    starts = [
        (stride, block)
        for depth, stride in zip(published.depth, published.strides, strict=True)
        for block in range(depth)
    ]
    model = nfnets_jax.create_model(
        name,
        features=True,
        width=tuple(int(w) // part for w in np.repeat(published.width, published.depth)),
        depth=(1,) * len(starts),
        strides=tuple(stride if block == 0 else 1 for stride, block in starts),
        stem=tuple((max(8, width // part), stride) for width, stride in published.stem),
        group_size=published.group_size and published.group_size // part,
    )

    @jax.jit
    def run(images: jax.Array) -> list[jax.Array]:
        params, state = model.init(keys[0], images)
        weights = _changed(model.prepare(params, images), model.config, change, keys[1])
        outputs, _ = model.forward(weights, state, None, images, False)
        return [outputs[f"stage_{number}"] for number in range(1, len(starts) + 1)]

    return jax.device_get(run(images))


def _changed(weights: hk.Params, config: Any, change: str, key: jax.Array) -> hk.MutableParams:
    """Changes prepared weights so that the network computes as if it lacked something.

    Every convolution but the first follows an activation, and those that read a block's input
    follow its beta: a factor less there is the same as one less in the kernel.
    """
    gain = layers.ACTIVATION_GAINS[config.activation]
    betas = dict(zip(itertools.chain(*config.block_names), config.betas, strict=True))
    changed: hk.MutableParams = {module: dict(values) for module, values in weights.items()}
    for module, values in changed.items():
        if "skip_gain" in values:
            values["skip_gain"] = jnp.ones(())
        if "w" not in values or values["w"].ndim != 4:
            continue
        block = module.split("/")[2]
        if change == "kernels not standardized":
            key, own = jax.random.split(key)
            random = jax.random.normal(own, values["w"].shape, values["w"].dtype)
            values["w"] = random * values["w"][..., 0].size ** -0.5
        elif change == "activations not scaled" and block in betas:
            values["w"] /= gain
        elif change == "no beta" and module.endswith(("/conv0", "/conv_shortcut")):
            values["w"] /= betas[block]
    return changed


def _resnet(name: str, part: int, images: jax.Array, key: jax.Array) -> list[np.ndarray]:
    """What each block of a ResNet gives, the last scale of its branch at one."""
    published = nfnets_jax.create_model(name).config
    model = nfnets_jax.create_model(
        name,
        width=tuple(width // part for width in published.width),
        group_width=published.group_width // part,
    )
    outputs: list[jax.Array] = []

    def keep(
        call: Callable[..., Any], args: Any, kwargs: Any, context: hk.MethodContext
    ) -> jax.Array:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and type(context.module).__name__ == "_Block":
            outputs.append(output)
        return output

    @jax.jit
    def run(images: jax.Array) -> list[jax.Array]:
        params, state = model.init(key, images)
        params = {
            module: {k: jnp.ones_like(v) if k == "scale" else v for k, v in arrays.items()}
            for module, arrays in params.items()
        }
        outputs.clear()
        with hk.intercept_methods(keep):
            model.apply(params, state, None, images, is_training=True)
        return list(outputs)

    return jax.device_get(run(images))


def _curves(outputs: Sequence[np.ndarray]) -> Curves:
    def variance(x: np.ndarray) -> float:
        return float(np.mean(np.var(x, axis=(0, 1, 2))))

    branches = [np.nan] + [
        variance(after - before) if after.shape == before.shape else np.nan
        for before, after in itertools.pairwise(outputs)
    ]
    variances = np.array([variance(x) for x in outputs])
    means = np.array([np.mean(np.mean(x, axis=(0, 1, 2)) ** 2) for x in outputs])
    return {
        "variance": variances,
        "squared_mean": means / variances,
        "branch_variance": np.array(branches),
    }


def _predicted(config: Any) -> np.ndarray:
    """Returns the variance that each block's output is to have."""
    channels, variance = config.stem[-1][0], 1.0
    variances: list[float] = []
    for width, depth in zip(config.width, config.depth, strict=True):
        for block in range(depth):
            starts_anew = block == 0 and (len(variances) > 0 or channels != width)
            variance = (1.0 if starts_anew else variance) + config.alpha**2
            variances.append(variance)
        channels = width
    return np.array(variances)


def _mean_curves(rows: Sequence[grid.Row], network: str, change: str) -> Curves:
    mine = [row for row in rows if (row["network"], row["change"]) == (network, change)]
    return {
        figure: np.mean(
            [
                [np.nan if value is None else value for name, value in row.items()
                 if name.rpartition("_")[0] == figure]
                for row in mine
            ],
            axis=0,
        )
        for figure in FIGURES
    }  # fmt: skip


def _label(network: str, change: str) -> str:
    return f"{network}, {change}" if change else network


def _verdict(curves: Mapping[str, Curves], predicted: Mapping[str, np.ndarray]) -> str:
    table, kept = [], []
    for label, curve in curves.items():
        expected = predicted.get(label.partition(",")[0])
        off = None if expected is None else float(np.abs(curve["variance"] / expected - 1).max())
        shift = float(curve["squared_mean"].max())
        table.append((label, float(curve["variance"].max()), off, shift))
        if off is not None and off < _VARIANCE_BOUND and shift < _MEAN_BOUND:
            kept.append(label)
    lines = [
        f"Variance within {_VARIANCE_BOUND:.0%} of its prediction after every block, and a squared "
        f"mean under {_MEAN_BOUND:g} of the variance: {', '.join(kept) or 'none'}.",
        grid.markdown_table(
            ("network", "largest variance", "farthest from predicted", "largest squared mean"),
            table,
        ),
        "![Figures after each block](signal_propagation.png)",
        "ResNets apply ReLU after the sum, so that what a block gives has a mean by its form; "
        "normalizer-free blocks apply theirs before the convolutions. NFNet's shortcuts of lower "
        "resolution take the mean of 2x2 pixels: that leaves a quarter of noise's variance, but "
        "nearly all of that of neighbours that are alike, as in photographs.",
    ]
    return "\n\n".join(lines)


def _draw(curves: Mapping[str, Curves], predicted: Mapping[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    panels = figure.subplots(1, len(FIGURES))
    for panel, (name, label) in zip(panels, FIGURES.items(), strict=True):
        for index, (network, curve) in enumerate(curves.items()):
            blocks = np.arange(1, len(curve[name]) + 1)
            panel.plot(blocks, curve[name], ".-", color=f"C{index}", label=network)
            if name == "variance" and network in predicted:
                panel.plot(blocks, predicted[network], "k:", zorder=3)
        panel.set(xlabel="residual block", title=label, yscale="log")
        panel.grid(alpha=0.3)
    panels[0].plot([], [], "k:", label="predicted")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    main()
