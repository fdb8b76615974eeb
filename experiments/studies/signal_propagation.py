"""Tests which parts of an NF-ResNet keep its signal in bounds at initialization.

NF-ResNets (Brock et al. 2021a, arXiv:2101.08692, section 3) claim that scaled weight
standardization, scaled activations and beta together keep the variance of the signal at a value
known in advance, and its mean near zero.

    python -m experiments.studies.signal_propagation --budget=cpu

Design: Gaussian noise and crops of two photographs pass through networks as they are initialized,
and the gradient of a random linear function of their logits passes back. The paper's curves and the
gradient's norm are measured at each residual block (``nfnets_jax.models.signal_propagation``). An
NF-ResNet loses its standardized kernels, its scaled activations and its betas, one at a time, in
its blocks; an NFNet, a ResNet with batch normalization and a ResNet with nothing in its place stand
beside it. Scales of branches that start at zero are set to one, or the branches would not show.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_images

import nfnets_jax
from nfnets_jax.data.normalization import IMAGENET_MEAN, IMAGENET_STD, normalize
from nfnets_jax.models import layers
from nfnets_jax.models.nfnet import NFBlock, WSConv2D
from nfnets_jax.models.signal_propagation import Signal, measure_model, picture

from . import command, grid, results


class Budget(NamedTuple):
    """The size of the study.

    Attributes:
      image_size: side of the images in pixels.
      images: number of them.
      seeds: of parameters, images and loss.
      width_divisor: the networks have this fraction of their published width.
      networks: registered names, each with what its blocks lose.
    """

    image_size: int
    images: int
    seeds: int
    width_divisor: int
    networks: tuple[tuple[str, str], ...]


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
_SMALL = (("nf_resnet26_small", INTACT), ("nf_resnet26_small", NO_BETA), ("resnet26_small", INTACT))
BUDGETS = {
    "smoke": Budget(16, 4, seeds=1, width_divisor=4, networks=_SMALL),
    "cpu": Budget(128, 8, seeds=3, width_divisor=1, networks=_NETWORKS),
    "gpu": Budget(224, 64, seeds=5, width_divisor=1, networks=_NETWORKS),
}
NOISE, PHOTOGRAPHS = "noise", "photographs"
_FIELDS = [field for field in Signal._fields if field != "blocks"]


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Measures all networks; needs no data but scikit-learn's two photographs."""
    del data_dir
    design = BUDGETS[budget]

    def run(settings: grid.Settings) -> dict[str, Any]:
        model = network(settings["network"], settings["change"], design.width_divisor)
        images_key, key = jax.random.split(jax.random.key(settings["seed"]))
        images = MAKE_IMAGES[settings["images"]](images_key, design)
        signal = measure_model(model, images, key)
        return {
            field: [None if np.isnan(value) else float(value) for value in getattr(signal, field)]
            for field in _FIELDS
        }

    conditions = {"budget": budget, **design._asdict()}
    del conditions["networks"]
    members = [
        {"network": name, "change": change, "images": images, "seed": seed}
        for seed in range(design.seeds)
        for name, change in design.networks
        for images in MAKE_IMAGES
    ]
    rows = grid.run_grid(workdir, conditions, members, run)
    signals = {images: mean_signals(rows, images) for images in MAKE_IMAGES}
    return results.Results(
        conditions,
        rows,
        [_table(images, own) for images, own in signals.items()],
        {
            f"signal_propagation_{images}": picture(
                {_label(*member): signal for member, signal in own.items()},
                {
                    name: predicted
                    for name, change in own
                    if change == INTACT and (predicted := predicted_variances(name)) is not None
                },
            )
            for images, own in signals.items()
        },
    )


def noise(key: jax.Array, design: Budget) -> jax.Array:
    """Draws independent Gaussian pixels, ``[images, size, size, 3]``."""
    return jax.random.normal(key, (design.images, design.image_size, design.image_size, 3))


def photographs(key: jax.Array, design: Budget) -> jax.Array:
    """Cuts random squares of half the height from two photographs, normalized.

    They are resized to ``[images, size, size, 3]``.
    """
    drawn = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    photos, crops = load_sample_images().images, []
    for number in range(design.images):
        photo = photos[number % len(photos)]
        side = photo.shape[0] // 2
        top, left = (int(drawn.integers(0, length - side + 1)) for length in photo.shape[:2])
        crop = normalize(photo[top : top + side, left : left + side], IMAGENET_MEAN, IMAGENET_STD)
        crops.append(jax.image.resize(crop, (design.image_size, design.image_size, 3), "linear"))
    return jnp.stack(crops)


MAKE_IMAGES: Mapping[str, Callable[[jax.Array, Budget], jax.Array]] = {
    NOISE: noise,
    PHOTOGRAPHS: photographs,
}


def network(name: str, change: str, width_divisor: int) -> nfnets_jax.Model:
    """Returns a network with a fraction of its width, whose blocks have lost a part.

    Args:
      name: a registered name.
      change: what the blocks of a normalizer-free network lose: ``INTACT``, ``UNSTANDARDIZED``,
        ``UNSCALED`` or ``NO_BETA``.
      width_divisor: the published width is divided by it.
    """
    published = nfnets_jax.create_model(name).config
    narrow: dict[str, Any] = {"width": tuple(x // width_divisor for x in published.width)}
    if not name.startswith("nf"):
        narrow["group_width"] = published.group_width // width_divisor
        return nfnets_jax.create_model(name, **narrow)
    narrow["stem"] = tuple((max(8, x // width_divisor), stride) for x, stride in published.stem)
    if published.group_size:
        narrow["group_size"] = published.group_size // width_divisor
    return nfnets_jax.create_model(name, **narrow, block=_BLOCKS[change])


class NoBetaBlock(NFBlock):
    """A block that does not divide by the standard deviation of its input."""

    def __call__(self, x: jax.Array, beta: Any = None, keep: jax.Array | None = None) -> jax.Array:
        """Applies the block as if ``beta`` were one."""
        del beta
        return super().__call__(x, 1.0, keep)


def unscaled_block(config: Any, *args: Any, **options: Any) -> NFBlock:
    """Makes a block whose activations shrink the variance as they come."""
    activation = layers.unscaled_activation(config.activation)
    return NFBlock(config, *args, **{**options, "activation": activation})


def unstandardized_block(
    config: Any, *args: Any, conv: Callable[..., WSConv2D] = WSConv2D, **options: Any
) -> NFBlock:
    """Makes a block whose kernels are used as drawn, with variance one over their fan-in."""
    return NFBlock(config, *args, conv=functools.partial(conv, prepared=True), **options)


_BLOCKS: Mapping[str, Callable[..., NFBlock]] = {
    INTACT: NFBlock,
    UNSTANDARDIZED: unstandardized_block,
    UNSCALED: unscaled_block,
    NO_BETA: NoBetaBlock,
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


def mean_signals(rows: Sequence[grid.Row], images: str) -> dict[tuple[str, str], Signal]:
    """Returns each network's figures on one kind of images, as geometric means over the seeds."""
    signals = {}
    measured = dict.fromkeys((row["network"], row["change"]) for row in rows)
    for member in measured:
        own = [r for r in rows if (r["network"], r["change"], r["images"]) == (*member, images)]
        curves = {
            field: np.exp(np.mean(np.log([np.array(row[field], float) for row in own]), axis=0))
            for field in _FIELDS
        }
        signals[member] = Signal((), **curves)
    return signals


def _label(network: str, change: str) -> str:
    return network if change == INTACT else f"{network}, {change}"


def _table(images: str, signals: Mapping[tuple[str, str], Signal]) -> str:
    lines = []
    for (name, change), signal in signals.items():
        predicted = predicted_variances(name)
        error = None
        if predicted is not None:
            error = float(np.abs(signal.variance / predicted - 1).max())
        lines.append(
            (
                _label(name, change),
                float(signal.variance.max()),
                float(signal.squared_mean.max()),
                error,
                float(signal.gradient[0] / signal.gradient[-1]),
            )
        )
    return results.table(
        f"On {images}: largest values over all blocks, geometric means over the seeds. The error "
        "is that of the variance, relative to its prediction, a dash where nothing is predicted. "
        "The gradient is its norm at the first block's output over that at the last's.",
        ("network", "variance", "squared mean / variance", "error", "gradient"),
        lines,
    )


if __name__ == "__main__":
    command.run("signal_propagation", __doc__, study)
