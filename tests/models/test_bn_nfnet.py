"""Batch-normalized NFNets: "-NF, + BN" in Brock et al. 2021b, arXiv:2102.06171, table 6."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nfnets_jax
from nfnets_jax.errors import InputError
from nfnets_jax.models import bn_nfnet

TINY: dict[str, Any] = {
    "width": (16, 32),
    "depth": (1, 2),
    "strides": (1, 2),
    "stem": ((8, 1), (16, 1)),
    "group_size": 4,
}


def kernels(name: str, **overrides: Any) -> list[tuple[int, ...]]:
    model = nfnets_jax.create_model(name, **overrides)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    return sorted(
        array.shape for values in params.values() for name, array in values.items() if name == "w"
    )


@pytest.mark.parametrize("name", ["nfnet_f0", "nfnet_micro"])
def test_a_twin_has_the_kernels_of_its_nfnet_and_nothing_of_the_nf_strategy(name: str) -> None:
    assert kernels(f"{name}_bn") == kernels(name)
    model = nfnets_jax.create_model(f"{name}_bn")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {name for values in params.values() for name in values} == {"w", "b", "scale", "offset"}
    norms = {module for module, values in params.items() if "scale" in values}
    assert norms == set(state)


@pytest.mark.parametrize(
    "options",
    [
        {"expands_input": True, "expansion": 2.25},
        {"excites_bottleneck": True, "expansion": 2.0},
        {"se_ratio": 0.0, "group_size": None, "activation": "silu"},
    ],
)
def test_a_twin_has_the_kernels_under_other_options(options: dict[str, Any]) -> None:
    options = {**TINY, **options}
    assert kernels("nfnet_micro_bn", **options) == kernels("nfnet_micro", **options)


def test_a_block_is_the_formula() -> None:
    """Normalization and GELU before each convolution, squeeze-excite without the factor of 2."""
    model = nfnets_jax.create_model("nfnet_micro_bn", 10, features=True, **TINY)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    params, state = model.init(jax.random.key(0), images)
    run = jax.jit(model.apply, static_argnums=4)
    outputs, after = run(params, state, None, images, True)

    def conv(x: Any, name: str, groups: int = 1) -> Any:
        return lax.conv_general_dilated(
            x, params[f"BatchNormNFNet/{name}"]["w"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    def activate(x: Any) -> Any:
        x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
        return x * jax.scipy.stats.norm.cdf(x)

    stem = conv(activate(conv(images, "stem_conv0")), "stem_conv1")
    out = conv(activate(stem), "block/conv0")
    out = conv(activate(out), "block/conv1", groups=2)
    out = conv(activate(out), "block/conv1b", groups=2)
    out = conv(activate(out), "block/conv2")
    layers = (f"BatchNormNFNet/block/squeeze_excite/~/{name}" for name in ("linear", "linear_1"))
    squeeze, excite = (params[layer]["w"] for layer in layers)
    factors = jax.nn.sigmoid(jax.nn.relu(out.mean((1, 2)) @ squeeze) @ excite)
    expected = stem + factors[:, None, None] * out  # Channels and resolution stay.
    np.testing.assert_allclose(outputs["stage_1"], expected, atol=0.01)

    means = after["BatchNormNFNet/block/norm0"]["mean"]
    np.testing.assert_allclose(means, 0.1 * stem.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    tested, same = run(params, after, None, images, False)
    assert np.abs(tested["logits"] - outputs["logits"]).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, same, after)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="no remat 'full'; there are none, block"):
        nfnets_jax.create_model("nfnet_f0_bn", remat="full")
    with pytest.raises(InputError, match="width 4, depth 1, strides 4"):
        nfnets_jax.create_model("nfnet_f0_bn", depth=(1,))
    assert bn_nfnet.VARIANTS["nfnet_f7_bn"].depth == (8, 16, 48, 24)
