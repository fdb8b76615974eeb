import functools

import jax
import jax.numpy as jnp
import pytest

import nfnets_jax
from nfnets_jax.models import counting
from nfnets_jax.models.convolution import conv2d

# Multiply-adds at the test resolution as published, and how far ours may be from them.
MULTIPLY_ADDS = {
    "nfnet_f0": (12.38e9, 1e-3),
    "nfnet_f1": (35.54e9, 1e-3),
    "nfnet_f2": (62.59e9, 1e-3),
    "nfnet_f3": (114.76e9, 1e-3),
    "nfnet_f4": (215.24e9, 1e-3),
    "nfnet_f5": (289.76e9, 1e-3),
    "nfnet_f6": (377.28e9, 1e-3),
    "resnet50": (4.1e9, 0.03),
    "efficientnet_b0": (0.39e9, 0.03),
    "efficientnet_b1": (0.70e9, 0.03),
    "efficientnet_b2": (1.0e9, 0.03),
    "efficientnet_b3": (1.8e9, 0.03),
    # These two are counted at 4.39 and 10.27 billion, whichever pixels at the border are left out.
    "efficientnet_b4": (4.2e9, 0.05),
    "efficientnet_b5": (9.9e9, 0.04),
    "efficientnet_b6": (19e9, 0.03),
    "efficientnet_b7": (37e9, 0.03),
}


@functools.cache
def summary(name: str) -> counting.Summary:
    model = nfnets_jax.create_model(name)
    return counting.summarize(model, model.config.test_size)


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_the_published_ones(name: str) -> None:
    published, tolerance = MULTIPLY_ADDS[name]
    assert summary(name).work.multiply_adds == pytest.approx(published, rel=tolerance)


def test_activations_are_the_published_ones() -> None:
    """Radosavovic et al. 2020, arXiv:2003.13678, table 4: 11.1 million of ResNet-50."""
    assert summary("resnet50").work.activations == pytest.approx(11.1e6, rel=0.01)


@pytest.mark.parametrize("name", ["nfnet_f0", "resnet50"])
def test_parts_have_all_parameters_and_their_stages_shapes(name: str) -> None:
    model = nfnets_jax.create_model(name, features=True)
    size = model.config.test_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def run(rng: jax.Array, images: jax.Array) -> tuple:
        params, state = model.init(rng, images)
        return params, model.apply(params, state, None, images, False)[0]

    params, outputs = jax.eval_shape(run, jax.random.key(0), images)
    assert summary(name).parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    parts = {part.name: part for part in summary(name).parts}
    assert list(parts) == ["stem", "stage_1", "stage_2", "stage_3", "stage_4", "head"]
    for stage in list(parts)[1:-1]:
        assert parts[stage].output_shape == outputs[stage].shape[1:]
    assert parts["head"].output_shape == (1000,)
    assert parts["stem"].work.multiply_adds > 0


def test_counts_are_those_of_products_and_convolutions() -> None:
    """In loops too, and none for the zeros of packed groups or for what else is computed."""

    def network(
        x: jax.Array, grouped: jax.Array, kernel: jax.Array, matrix: jax.Array
    ) -> jax.Array:
        x = conv2d(conv2d(x, grouped), kernel, 2)
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ matrix), None), x, length=3)
        return x

    shapes = [(2, 8, 8, 6), (3, 3, 2, 6), (3, 3, 6, 4), (4, 4)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    first, outputs = 2 * 8 * 8 * 6, 2 * 4 * 4 * 4
    assert counting.work(network, *args) == (
        first * 3 * 3 * 2 + outputs * 3 * 3 * 6 + 3 * outputs * 4,
        first + outputs + 3 * outputs,
    )
