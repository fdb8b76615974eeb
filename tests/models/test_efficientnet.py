import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.errors import InputError
from nfnets_jax.models.efficientnet import Stage
from tests import golden


def test_stages_have_the_published_shapes() -> None:
    """Tan and Le 2019, arXiv:1905.11946, table 1; a stage's resolution there is its input's."""
    model = nfnets_jax.create_model("efficientnet_b0", features=True)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    def run(rng: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
        return model.apply(*model.init(rng, images), None, images, False)[0]

    outputs = jax.eval_shape(run, jax.random.key(0), images)
    shapes = [outputs[f"stage_{number}"].shape[1:] for number in range(1, 8)]
    sizes, channels = (112, 56, 28, 14, 14, 7, 7), (16, 24, 40, 80, 112, 192, 320)
    assert shapes == [(s, s, c) for s, c in zip(sizes, channels, strict=True)]
    assert outputs["pool"].shape == (1, 1280)


@pytest.mark.slow
def test_stochastic_depth_drops_a_branch_or_scales_it_up() -> None:
    images = jnp.asarray(golden.images(64, 8))

    def last_stage(blocks: int, rate: float) -> np.ndarray:
        model = nfnets_jax.create_model(
            "efficientnet_b0",
            10,
            features=True,
            width_factor=0.5,
            stages=(Stage(1, 3, 1, 16, 1), Stage(6, 5, 2, 16, blocks)),
            stochastic_depth_rate=rate,
        )
        params, state = model.init(jax.random.key(0), images)
        outputs, _ = jax.jit(model.apply, static_argnums=4)(
            params, state, jax.random.key(1), images, True
        )
        return np.asarray(outputs["stage_2"])

    shortcut = last_stage(1, 0.0)
    branch = last_stage(2, 0.0) - shortcut
    # Of three blocks the last, dropped at two thirds of the rate.
    ratio = np.sum((last_stage(2, 0.6) - shortcut) * branch, (1, 2, 3)) / np.sum(
        branch**2, (1, 2, 3)
    )
    kept = ratio > 0.5
    np.testing.assert_allclose(ratio, np.where(kept, 1 / 0.6, 0), atol=1e-3)
    assert np.mean(kept) == pytest.approx(0.6, abs=0.2)


def test_an_unknown_remat_is_refused() -> None:
    with pytest.raises(InputError, match="no remat 'full'; there are none, block"):
        nfnets_jax.create_model("efficientnet_b0", remat="full")
