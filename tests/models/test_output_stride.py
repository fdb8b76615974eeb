"""Dilated backbones compute what they did, at more pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nfnets_jax
from nfnets_jax.errors import InputError
from nfnets_jax.kernels.dilated import dilated_conv2d
from nfnets_jax.models import layers
from nfnets_jax.models.registry import FeatureInfo, Model

# Two blocks in the later stages, so that the dilation inside of a stage is used. Squeeze-excite
# averages over all pixels, of which there are more.
TINY: dict[str, dict[str, Any]] = {
    "nf_resnet26_small": {"width": (8, 16, 24), "depth": (1, 2, 2), "strides": (1, 2, 2)},
    "nfnet_tiny": {
        "width": (8, 16, 16),
        "depth": (1, 2, 2),
        "strides": (1, 2, 2),
        "group_size": 4,
        "se_ratio": 0.0,
        "looped_blocks": 1,
    },
    "resnet26_small": {"width": (8, 16, 24), "depth": (1, 2, 2), "group_width": 8},
    "seresnext26d_small": {"width": (8, 16, 24), "depth": (1, 2, 2), "groups": 2, "se_ratio": 0.0},
}


@pytest.mark.parametrize(("dilation", "height", "width"), [(2, 8, 8), (2, 7, 9), (3, 10, 5)])
@pytest.mark.parametrize("groups", [1, 2])
def test_dilated_convolution_is_that_of_xla(
    dilation: int, height: int, width: int, groups: int
) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, height, width, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4 // groups, 6)), jnp.float32)
    expected = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    actual = dilated_conv2d(x, kernel, dilation)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("size", [6, 7])
def test_averages_at_every_other_pixel_are_those_of_pooling(size: int) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, size, size, 2)), jnp.float32)
    np.testing.assert_allclose(
        layers.sliding_average(x)[:, ::2, ::2], layers.average_pool(x), atol=1e-6
    )


def outputs(model: Model, params: Any, state: Any, images: jax.Array) -> Any:
    run = jax.jit(lambda params, state: model.apply(params, state, None, images, False)[0])
    return run(params, state)


@pytest.mark.parametrize("name", TINY)
def test_a_dilated_network_agrees_where_the_other_has_outputs(name: str) -> None:
    """At odd sizes strides sample every other pixel from the first, so the grids coincide."""
    strided = nfnets_jax.create_model(name, 0, features=True, **TINY[name])
    dilated = nfnets_jax.create_model(name, 0, features=True, output_stride=2, **TINY[name])
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 33, 33, 3)), jnp.float32)
    params, state = strided.init(jax.random.key(0), images)
    # Branches start at zero, and would hide what they compute.
    params = jax.tree.map(lambda x: x + 0.3 if x.ndim < 2 else x, params)
    expected, actual = (outputs(model, params, state, images) for model in (strided, dilated))
    assert actual["stage_3"].shape[1:3] == (17, 17)
    np.testing.assert_allclose(actual["stage_3"][:, ::2, ::2], expected["stage_3"], atol=1e-4)


def test_dilation_changes_no_parameter() -> None:
    """The last stage of an F-network has a shortcut's convolution for its stride alone."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    trees = [
        jax.eval_shape(
            nfnets_jax.create_model("nfnet_f0", output_stride=limit).init,
            jax.random.key(0),
            images,
        )
        for limit in (None, 16)
    ]
    assert trees[0] == trees[1]


def test_an_output_stride_below_the_stem_is_refused() -> None:
    with pytest.raises(InputError, match="output_stride is 2; the stem has 4 already"):
        nfnets_jax.create_model("nf_resnet50", output_stride=2)
    with pytest.raises(InputError, match="efficientnet_b0 has no setting 'output_stride'"):
        nfnets_jax.create_model("efficientnet_b0", output_stride=16)


def strides(name: str, **settings: Any) -> list[int]:
    return [info.stride for info in nfnets_jax.create_model(name, **settings).feature_info]


def test_strides_of_the_stages() -> None:
    """Compares with the published networks, and with the limit that is asked for."""
    assert strides("nf_resnet50") == [4, 8, 16, 32]
    assert strides("nf_resnet50", output_stride=8) == [4, 8, 8, 8]
    assert strides("nf_resnet26_small") == [1, 2, 4, 8]
    assert strides("seresnext26d_small", output_stride=4) == [1, 2, 4, 4]


def test_features_have_the_shapes_that_the_model_names() -> None:
    model = nfnets_jax.create_model("nfnet_tiny", 0, features=True)
    image = jax.ShapeDtypeStruct((1, 40, 72, 3), jnp.float32)

    def run(key: jax.Array, image: jax.Array) -> Any:
        params, state = model.init(key, image)
        return model.apply(params, state, None, image, False)[0]

    found = jax.eval_shape(run, jax.random.key(0), image)
    assert model.feature_info[0] == FeatureInfo("stage_1", 64, 1)
    for name, channels, stride in model.feature_info:
        assert found[name].shape == (1, 40 // stride, 72 // stride, channels)
