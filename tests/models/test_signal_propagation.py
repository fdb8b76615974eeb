"""At initialization signals stay as large as planned, and without a mean (NF-ResNets, section 3).

Measured on Gaussian images in networks of narrow stages of one block each, whose outputs are the
features. Where a shortcut takes the mean of 2x2 pixels, no resolution is lost after the stem: the
mean keeps the variance of neighbours that are alike, as in photographs, but a quarter of noise's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.kernels.convolution import conv2d
from nfnets_jax.models import layers

ALPHA = 0.2
WIDTH = (96, 96, 96, 160, 160, 160)
# One block widens, two do not: each that widens starts again at a variance of one.
PREDICTED = 1 + ALPHA**2 * np.array([1, 2, 3, 1, 2, 3])


def variances_and_shifts(outputs: list[jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each block, the mean channel's variance and its mean over its deviation."""
    means = [jnp.mean(x, (0, 1, 2)) for x in outputs]
    deviations = [jnp.std(x, (0, 1, 2)) for x in outputs]
    shifts = [jnp.mean(jnp.abs(m) / d) for m, d in zip(means, deviations, strict=True)]
    return np.array([jnp.mean(d**2) for d in deviations]), np.array(shifts)


def gaussian_images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (8, 64, 64, 3))


def measure(
    name: str, images: jax.Array, draws: int = 1, **overrides: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``variances_and_shifts`` of a model whose stages have one block each.

    They are means over ``draws`` of the parameters: a single draw of a deep network is far off.
    """
    model = nfnets_jax.create_model(name, 10, features=True, **overrides)

    @jax.jit
    def run(rng: jax.Array) -> dict[str, jax.Array]:
        params, state = model.init(rng, images)
        # New branches are at zero: with a skip gain of one they add what is predicted.
        params = jax.tree.map(lambda param: param + 1.0 if param.ndim == 0 else param, params)
        return model.apply(params, state, None, images, False)[0]

    blocks = len(overrides["depth"])
    drawn = []
    for seed in range(draws):
        outputs = run(jax.random.key(seed))
        drawn.append(variances_and_shifts([outputs[f"stage_{i + 1}"] for i in range(blocks)]))
    variances, shifts = np.mean(drawn, axis=0)
    return variances, shifts


@pytest.mark.parametrize(
    ("name", "stride"),
    [pytest.param("nfnet_f0", 1, marks=pytest.mark.slow), ("nf_resnet50", 2), ("nf_regnet_b0", 1)],
)
def test_normalizer_free_blocks_have_the_analytic_variance(name: str, stride: int) -> None:
    variances, shifts = measure(
        name,
        gaussian_images(),
        width=WIDTH,
        depth=(1,) * 6,
        strides=(1, 1, 1, stride, 1, 1),
        stem=((64, 2),),
        alpha=ALPHA,
    )
    np.testing.assert_allclose(variances, PREDICTED, rtol=0.15)
    assert shifts.max() < 0.1


def activated(activation: layers.Activation, variance: float, zeros: Any = 0.0) -> float:
    """Returns the variance of activated Gaussian numbers for kernels without a mean, by quadrature.

    ReLU's doubles with the variance of its input; that of GELU and SiLU grows faster. ``zeros`` is
    the share of zeros around the image under the kernel, which lie off the mean; for an array of
    shares the result is the mean.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    weights /= weights.sum()
    values = np.asarray(activation(jnp.asarray(points * variance**0.5)))
    mean = weights @ values
    own = weights @ (values - mean) ** 2
    return float(np.mean((1 - zeros) * own + zeros * (1 - zeros) * mean**2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        for family in ("nf_resnet*", "nf_regnet*", "nfnet_*")
        for name in nfnets_jax.list_models(family)
        if not name.endswith(("_plus", "_bn"))
    ],
)
def test_every_block_of_every_normalizer_free_model_has_it(name: str) -> None:
    """Networks have their own depth; the wide ones are a quarter as wide."""
    config = nfnets_jax.create_model(name).config
    narrower = 4 if max(config.width) > 1024 else 1
    # A stage that keeps the resolution has to widen, to be a transition all the same.
    widths = [
        width // narrower + 32 * stage
        for stage, (width, depth) in enumerate(zip(config.width, config.depth, strict=True), 1)
        for _ in range(depth)
    ]
    activation = layers.scaled_activation(config.activation)
    inside = np.array([2 / 3, *[1] * 30, 2 / 3])
    around = 1 - np.outer(inside, inside)  # The zeros' share of each of 32x32 outputs' windows.
    expected, planned, variance = [], 1.0, 1.0
    for width, before in zip(widths, [64, *widths], strict=False):
        entering = branch = activated(activation, variance) / planned
        for _ in config.spatial:
            branch = activated(activation, branch, around)
        branch = activated(activation, branch)
        kept = width == before
        planned = (planned if kept else 1.0) + config.alpha**2
        variance = (variance if kept else entering) + config.alpha**2 * branch
        expected.append(variance)
    ones = (1,) * len(widths)
    variances, shifts = measure(
        name,
        gaussian_images()[:2],
        draws=6,
        width=tuple(widths),
        depth=ones,
        strides=ones,
        stem=((64, 2),),
        group_size=config.group_size and min(config.group_size, 16),
    )
    np.testing.assert_allclose(variances, expected, rtol=0.15)
    assert shifts.max() < 0.1


def test_a_resnet_without_normalization_has_neither() -> None:
    x, outputs = gaussian_images(), []
    keys = iter(jax.random.split(jax.random.key(0), 12))

    def convolve(x: jax.Array, size: int, width: int) -> jax.Array:
        shape = (size, size, x.shape[-1], width)
        he = (2 / np.prod(shape[:3])) ** 0.5
        return conv2d(x, he * jax.random.normal(next(keys), shape))

    x = convolve(x[:, ::2, ::2], 3, WIDTH[0])
    for width in WIDTH[:3]:
        x = x + convolve(jax.nn.relu(convolve(jax.nn.relu(x), 3, width)), 3, width)
        outputs.append(x)
    variances, shifts = variances_and_shifts(outputs)
    assert (np.abs(variances / PREDICTED[:3] - 1) > 0.15).all()
    assert (shifts > 0.1).all()
