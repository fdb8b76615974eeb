from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnets_jax
from nfnets_jax import optax_agc
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.groups import equal_modules, grouped, is_group, unit_axes
from nfnets_jax.models.registry import Model

RNG = np.random.default_rng(0)
GPU = Policy(backend="gpu")


def convolution(channels: int) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"w": (3, 3, 2, channels), "gain": (channels,)}
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


PARAMS: dict[str, dict[str, Any]] = {
    "net/~/stem": convolution(4),
    "net/~/block/~/conv0": convolution(4),
    "net/~/block/~/conv1": convolution(4),
    "net/~/block/~/conv2": convolution(5),
    "net/~/block": {"skip_gain": np.float32(1)},
    "net/~/block_1": {"skip_gain": np.float32(2)},
    "net/~/norm": {"scale": np.ones(4)},
    "net/~/upsample_transpose": {"w": np.ones((3, 3, 2, 4))},
    "net/~/embed": {"embeddings": np.ones((7, 4))},
}


def test_modules_of_equal_shapes_share_arrays_with_the_outputs_first() -> None:
    groups = equal_modules(PARAMS, alone=("net/~/stem",))
    assert [group.modules for group in groups] == [
        ("net/~/block/~/conv0", "net/~/block/~/conv1"),
        ("net/~/block/~/conv2",),
        ("net/~/block", "net/~/block_1"),
    ]
    tree = grouped(PARAMS, groups)
    alone = {"net/~/stem", "net/~/norm", "net/~/upsample_transpose", "net/~/embed"}
    assert {module for module in tree if not is_group(module)} == alone
    kernels = tree[groups[0].name]["w"]
    assert kernels.shape == (2, 4, 3, 3, 2)
    for kernel, module in zip(kernels, groups[0].modules, strict=True):
        np.testing.assert_array_equal(kernel, np.moveaxis(PARAMS[module]["w"], -1, 0))
    np.testing.assert_array_equal(tree[groups[2].name]["skip_gain"], [1, 2])


def test_units_are_clipped_alike_in_a_group() -> None:
    params = {name: values for name, values in PARAMS.items() if "conv" in name}
    grads = jax.tree.map(lambda x: RNG.standard_normal(x.shape).astype(np.float32), params)
    agc = optax_agc.adaptive_grad_clip(0.3, unit_axes=optax_agc.haiku.override(unit_axes))
    expected, _ = agc.update(grads, agc.init(params), params)
    groups = equal_modules(params)
    in_groups = [grouped(tree, groups) for tree in (grads, params)]
    actual, _ = agc.update(in_groups[0], agc.init(params), in_groups[1])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        actual,
        grouped(expected, groups),
    )


def loss_and_gradient(model: Model, params: Any, state: Any) -> Any:
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))

    @jax.jit
    @jax.value_and_grad
    def loss(params: Any) -> jax.Array:
        outputs, _ = model.apply(params, state, jax.random.key(2), images, True)
        return jnp.mean(jnp.square(outputs["logits"]))

    return loss(params)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("nfnet_micro", {"depth": (2, 1, 2), "stochastic_depth_rate": 0.2}),
        pytest.param(
            "resnet26_small",
            {"depth": (2, 1, 1, 1), "width": (16, 32, 32, 32)},
            marks=pytest.mark.slow,
        ),
        ("nfnet_micro_bn", {"depth": (2,), "width": (16,), "strides": (2,), "group_size": 8}),
    ],
)
def test_a_network_computes_the_same_from_groups(name: str, overrides: dict[str, Any]) -> None:
    model = nfnets_jax.create_model(name, 10, **overrides)
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = jax.tree.map(lambda x: x + 0.3 if x.ndim < 2 else x, params)
    loss, expected = loss_and_gradient(model, params, state)
    on_gpu = model.with_policy(GPU)
    of_groups, gradient = loss_and_gradient(on_gpu, on_gpu.stacked(params), state)
    assert float(of_groups) == pytest.approx(float(loss), rel=1e-5)
    actual = on_gpu.unstacked(gradient)
    chex.assert_trees_all_equal_structs(actual, expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * scale + 1e-7)


def test_running_statistics_stay_in_groups() -> None:
    """Steps whose state changed its form could not follow one another."""
    model = nfnets_jax.create_model(
        "nfnet_micro_bn", 10, depth=(2,), width=(16,), strides=(2,), group_size=8
    )
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    params, state = model.init(jax.random.key(0), images)
    on_gpu = model.with_policy(GPU)
    of_groups = on_gpu.stacked(state)
    assert of_groups.keys() != state.keys()
    _, expected = model.apply(params, state, None, images, True)
    _, actual = on_gpu.apply(on_gpu.stacked(params), of_groups, None, images, True)
    chex.assert_trees_all_equal_structs(actual, of_groups)
    chex.assert_trees_all_close(on_gpu.unstacked(actual), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["nfnet_f2", "nfnet_f0_bn", "nf_regnet_b1", "resnet50", "efficientnet_b0"]
)
def test_a_deep_network_is_grouped_and_ungrouped(name: str) -> None:
    """An optimizer's state groups too, and images of any number of channels have the groups."""
    model = nfnets_jax.create_model(name, 10).with_policy(GPU)
    images = jax.ShapeDtypeStruct((1, 64, 64, 1), np.float32)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    moments = jax.eval_shape(optax.adam(0.1).init, params)
    tree = jax.eval_shape(model.stacked, (params, moments))
    assert len(jax.tree.leaves(tree)) < 0.6 * len(jax.tree.leaves((params, moments)))
    assert jax.eval_shape(model.stacked, tree) == tree
    assert jax.eval_shape(model.unstacked, tree) == (params, moments)
