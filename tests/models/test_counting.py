"""Every listed model, by shapes alone, and how its counts compare with the published ones."""

import jax
import jax.numpy as jnp
import pytest

import nfnets_jax
from nfnets_jax.kernels.convolution import Policy, conv2d
from nfnets_jax.models import counting

PARAMETERS = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet50d": 25_576_264,
    "seresnet50": 28_088_024,
    "seresnext26d_32x4d": 16_809_512,
    "seresnext50_32x4d": 27_559_896,
    "seresnext101d_32x8d": 93_588_280,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
}
# At the test resolution, and how far ours may be from them.
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
    # The published networks, operation by operation, give 4.39 and 10.27 billion for these two.
    "efficientnet_b4": (4.2e9, 0.05),
    "efficientnet_b5": (9.9e9, 0.04),
    "efficientnet_b6": (19e9, 0.03),
    "efficientnet_b7": (37e9, 0.03),
}
# Radosavovic et al. 2020, arXiv:2003.13678, table 4.
ACTIVATIONS = {"resnet50": 11.1e6}
# Of each family the smallest and the largest that is published; the rest take long to trace.
QUICK = {
    "nfnet_f0",
    "nfnet_micro",
    "nf_resnet50",
    "nf_regnet_b0",
    "resnet50",
    "resnet50d",
    "seresnet50",
    "seresnext26d_32x4d",
    "efficientnet_b0",
    "efficientnet_b7",
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in nfnets_jax.list_models()
    ],
)
def test_every_model_has_its_parts_and_published_counts(name: str) -> None:
    model = nfnets_jax.create_model(name)
    summary = counting.summarize(model, model.config.test_size)
    stages = [f"stage_{i}" for i in range(1, len(summary.parts) - 1)]
    assert [part.name for part in summary.parts] == ["stem", *stages, "head"]
    assert summary.parts[-1].output_shape == (1000,)
    assert all(part.work.multiply_adds for part in summary.parts)
    fixed = {"stem"} if name == "nf_convnet" else set()
    assert {part.name for part in summary.parts if not part.parameters} == fixed
    work = summary.work
    if name in PARAMETERS:
        assert summary.parameters == PARAMETERS[name]
    if name in MULTIPLY_ADDS:
        published, tolerance = MULTIPLY_ADDS[name]
        assert work.multiply_adds == pytest.approx(published, rel=tolerance)
    if name in ACTIVATIONS:
        assert work.activations == pytest.approx(ACTIVATIONS[name], rel=0.01)


@pytest.mark.parametrize("name", ["nfnet_tiny", "resnet26_small", "efficientnet_b0"])
def test_parts_have_all_parameters_and_their_stages_shapes(name: str) -> None:
    model = nfnets_jax.create_model(name, features=True)
    size = model.config.test_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def run(rng: jax.Array, images: jax.Array) -> tuple:
        params, state = model.init(rng, images)
        return params, model.apply(params, state, None, images, False)[0]

    params, outputs = jax.eval_shape(run, jax.random.key(0), images)
    summary = counting.summarize(model, size)
    assert summary.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    for part in summary.parts[1:-1]:
        assert part.output_shape == outputs[part.name].shape[1:]


def test_products_and_convolutions_are_counted() -> None:
    """Loops count each iteration; padding zeros and elementwise operations count nothing."""

    def network(x: jax.Array, grouped: jax.Array, dense: jax.Array, matrix: jax.Array) -> jax.Array:
        native = Policy(native=True)
        x = conv2d(conv2d(x, grouped, policy=native), dense, 2, native)
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ matrix), None), x, length=3)
        return x

    shapes = [(2, 8, 8, 6), (3, 3, 2, 6), (3, 3, 6, 4), (4, 4)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    first, outputs = 2 * 8 * 8 * 6, 2 * 4 * 4 * 4
    assert counting.work(network, *args) == (
        first * 3 * 3 * 2 + outputs * 3 * 3 * 6 + 3 * outputs * 4,
        first + outputs + 3 * outputs,
    )
