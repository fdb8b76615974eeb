"""Pyramid and head, alone and on backbones of several families."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs
from experiments.detection.network import DenseConfig, DenseHead, create_dense_model, spread
from experiments.detection.settings import Settings
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.layers import ACTIVATION_GAINS
from nfnets_jax.models.registry import FeatureInfo

CHANNELS, CLASSES = 32, 40


def run_head(stages: list[jax.Array], depth: int, boxes: bool) -> dict[str, jax.Array]:
    infos = tuple(
        FeatureInfo(f"stage_{k}", stage.shape[-1], 4 * 2**k) for k, stage in enumerate(stages)
    )
    config = DenseConfig(None, infos, channels=CHANNELS, depth=depth, boxes=boxes)

    def network(stages: list[jax.Array]) -> dict[str, jax.Array]:
        return DenseHead(config, CLASSES, Policy(native=True), prepared=False)(stages)

    run: Any = hk.without_apply_rng(hk.transform(network))
    params = run.init(jax.random.key(0), stages)
    return jax.jit(run.apply)(params, stages)


@pytest.mark.parametrize("depth", [0, 1])
def test_signals_keep_their_variance_at_initialization(depth: int) -> None:
    """Three stages of unit variance give logits as those of one: sums do not add up.

    The mean square of a scaled ReLU of a Gaussian is half its gain squared.
    """
    rng = np.random.default_rng(0)
    stages = [
        jnp.asarray(rng.standard_normal((2, size, size, 64)), jnp.float32) for size in (32, 16, 8)
    ]
    outputs = run_head(stages, depth, boxes=False)
    expected = 0.03 * np.sqrt(CHANNELS * ACTIVATION_GAINS["relu"] ** 2 / 2)
    logits = np.asarray(outputs["logits"])
    inner = logits[:, 4:-4, 4:-4]  # Zeros around the image count less.
    assert np.sqrt(np.mean(inner**2)) == pytest.approx(expected, rel=0.25)


def test_sizes_that_no_stride_divides_are_joined() -> None:
    sizes = [(10, 13), (5, 7), (3, 4)]
    stages = [jnp.ones((1, *size, 8)) for size in sizes]
    outputs = run_head(stages, 0, boxes=True)
    assert outputs["logits"].shape == (1, 10, 13, CLASSES)
    assert outputs["distances"].shape == (1, 10, 13, 4)
    assert (np.asarray(outputs["distances"]) > 0).all()


@pytest.mark.parametrize("name", ["nfnet_tiny", "seresnext26d_small", "efficientnet_b0_small"])
def test_every_family_is_a_backbone(name: str) -> None:
    """The backbone's parameters keep their names, so that a classifier's weights fit."""
    config = configs.get_config("detect_digits")
    with config.unlocked():
        config.model = {"name": name}
    model = create_dense_model(config, CLASSES, Settings(stride=4, channels=8), boxes=True)
    images = jnp.zeros((1, 48, 48, 3))

    def run(key: jax.Array) -> Any:
        params, state = model.init(key, images)
        return params, model.apply(params, state, None, images, False)[0]

    params, outputs = jax.eval_shape(run, jax.random.key(0))
    assert outputs["logits"].shape == (1, 12, 12, CLASSES)
    assert model.first_conv in params
    assert model.classifier in params
    own = {module.split("/")[0] for module in params}
    assert len(own) == 2 and "DenseHead" in own


def test_channels_are_spread_over_pixels_as_by_a_loop() -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 8)).astype(np.float32)
    pixels = np.asarray(spread(jnp.asarray(x), 2))
    for row, column in np.ndindex(4, 6):
        first = 2 * (2 * (row % 2) + column % 2)
        expected = x[0, row // 2, column // 2, first : first + 2]
        np.testing.assert_array_equal(pixels[0, row, column], expected)
