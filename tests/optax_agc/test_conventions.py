"""Units next to the layers themselves: the weights that an output depends on."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from nfnets_jax import optax_agc
from nfnets_jax.optax_agc import Convention
from tests.optax_agc import reference
from tests.optax_agc.reference import random

KEY = jax.random.key(0)
SEQUENCE, IMAGE, VIDEO = (random(i, shape) for i, shape in
                          enumerate([(2, 7, 6), (2, 7, 7, 6), (1, 5, 5, 5, 6)]))  # fmt: skip
TOKENS = jnp.array([3, 5])
# A function of the parameters, the parameters, how many last axes of what it gives are outputs.
Layer = tuple[Callable[[Any], jax.Array], Any, int]


def filled(shapes: Any, scale: float = 1.0, seed: int = 0) -> Any:
    """Fills shapes with random numbers, so that no initializer compiles."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(scale * rng.standard_normal(x.shape)), shapes)


def of_haiku(make: Callable[[], Any], x: jax.Array) -> Layer:
    layer: Any = hk.without_apply_rng(hk.transform(lambda x: make()(x)))
    params = filled(jax.eval_shape(layer.init, KEY, x))
    return lambda params: layer.apply(params, x), params, 1


def of_linen(module: Any, x: jax.Array, outputs: int = 1) -> Layer:
    params = filled(jax.eval_shape(module.init, KEY, x))
    return lambda params: module.apply(params, x), params, outputs


def of_nnx(make: Callable[[nnx.Rngs], nnx.Module], x: jax.Array, outputs: int = 1) -> Layer:
    graph, params = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    return lambda params: nnx.merge(graph, params)(x), filled(params), outputs


def of_equinox(make: Callable[[], eqx.Module], x: jax.Array) -> Layer:
    """Makes a layer of Equinox, which has channels first and no batch."""
    module = filled(eqx.filter_eval_shape(make))
    x = jnp.moveaxis(x[0], -1, 0) if x.ndim > 1 else x
    return lambda params: jnp.moveaxis(params(x), 0, -1), module, 1


def of_pytorch(shape: Sequence[int], transposed: bool, bias: bool = True) -> Layer:
    """Makes a convolution in PyTorch's layout, ``[O, I, H, W]``, or ``[I, O, H, W]`` transposed."""
    name = "up.conv_transpose" if transposed and not bias else "up.0"
    params = {f"{name}.weight": random(0, shape)}
    if bias:
        params[f"{name}.bias"] = random(1, (shape[1 if transposed else 0],))
    kernel = "IOHW" if transposed else "OIHW"

    def run(params: Any) -> jax.Array:
        weight = params[f"{name}.weight"]
        return lax.conv_general_dilated(
            IMAGE, weight, (1, 1), "SAME", dimension_numbers=("NHWC", kernel, "NHWC")
        )

    return run, params, 1


LAYERS: dict[str, Callable[[], tuple[Convention, Layer]]] = {
    "hk.Linear": lambda: (optax_agc.haiku, of_haiku(lambda: hk.Linear(5), SEQUENCE)),
    "hk.Conv1D": lambda: (optax_agc.haiku, of_haiku(lambda: hk.Conv1D(5, 3), SEQUENCE)),
    "hk.Conv2D": lambda: (optax_agc.haiku, of_haiku(lambda: hk.Conv2D(5, 3), IMAGE)),
    "hk.Conv3D": lambda: (optax_agc.haiku, of_haiku(lambda: hk.Conv3D(5, 2), VIDEO)),
    "hk.Conv1DTranspose": lambda: (
        optax_agc.haiku, of_haiku(lambda: hk.Conv1DTranspose(6, 3, with_bias=False), SEQUENCE)),
    "hk.Conv2DTranspose, own name": lambda: (
        optax_agc.haiku, of_haiku(lambda: hk.Conv2DTranspose(5, 3, name="up"), IMAGE)),
    "hk.DepthwiseConv2D": lambda: (
        optax_agc.haiku, of_haiku(lambda: hk.DepthwiseConv2D(2, 3), IMAGE)),
    "nn.Dense": lambda: (optax_agc.flax, of_linen(nn.Dense(5), SEQUENCE)),
    "nn.DenseGeneral to two axes": lambda: (
        optax_agc.flax, of_linen(nn.DenseGeneral((2, 3)), SEQUENCE, 2)),
    "nn.DenseGeneral from two axes": lambda: (
        optax_agc.flax, of_linen(nn.DenseGeneral(5, axis=(-2, -1)), SEQUENCE)),
    "nn.Conv 1": lambda: (optax_agc.flax, of_linen(nn.Conv(5, (3,)), SEQUENCE)),
    "nn.Conv 2": lambda: (optax_agc.flax, of_linen(nn.Conv(5, (3, 3), use_bias=False), IMAGE)),
    "nn.Conv 3": lambda: (optax_agc.flax, of_linen(nn.Conv(5, (2, 2, 2)), VIDEO)),
    "nn.ConvTranspose": lambda: (optax_agc.flax, of_linen(nn.ConvTranspose(5, (3, 3)), IMAGE)),
    "nnx.Linear": lambda: (
        optax_agc.flax, of_nnx(lambda rngs: nnx.Linear(6, 5, rngs=rngs), SEQUENCE)),
    "nnx.LinearGeneral": lambda: (
        optax_agc.flax, of_nnx(lambda rngs: nnx.LinearGeneral(6, (4, 5), rngs=rngs), SEQUENCE, 2)),
    "nnx.Conv": lambda: (
        optax_agc.flax, of_nnx(lambda rngs: nnx.Conv(6, 5, (3,), rngs=rngs), SEQUENCE)),
    "nnx.ConvTranspose": lambda: (
        optax_agc.flax, of_nnx(lambda rngs: nnx.ConvTranspose(6, 5, (3, 3), rngs=rngs), IMAGE)),
    "eqx.nn.Linear": lambda: (
        optax_agc.equinox, of_equinox(lambda: eqx.nn.Linear(6, 5, key=KEY), random(0, (6,)))),
    "eqx.nn.Conv1d": lambda: (
        optax_agc.equinox, of_equinox(lambda: eqx.nn.Conv1d(6, 5, 3, key=KEY), SEQUENCE)),
    "eqx.nn.Conv3d": lambda: (
        optax_agc.equinox, of_equinox(lambda: eqx.nn.Conv3d(6, 5, 2, key=KEY), VIDEO)),
    "eqx.nn.ConvTranspose2d": lambda: (
        optax_agc.equinox, of_equinox(lambda: eqx.nn.ConvTranspose2d(6, 5, 3, key=KEY), IMAGE)),
    "OIHW": lambda: (optax_agc.pytorch, of_pytorch((5, 6, 3, 3), transposed=False)),
    "IOHW by its bias": lambda: (optax_agc.pytorch, of_pytorch((6, 5, 3, 3), transposed=True)),
    "IOHW by its name": lambda: (
        optax_agc.pytorch, of_pytorch((6, 6, 3, 3), transposed=True, bias=False)),
}  # fmt: skip


def shapes_of_units(params: Any, convention: Convention) -> Any:
    """Returns the shapes of the ratios: 1 along the axes inside a unit."""
    return jax.eval_shape(lambda p: optax_agc.unit_ratios(p, p, unit_axes=convention), params)


def unit_of(convention: Convention, params: Any, name: str, touched: np.ndarray) -> np.ndarray:
    """Returns the entries in the same unit as the first of those touched."""
    ratios = jax.tree_util.tree_leaves_with_path(shapes_of_units(params, convention))
    (outer,) = (ratio.shape for path, ratio in ratios if kernel_name(path) == name)
    first = np.argwhere(touched)[0]
    inside = [
        place == there
        for place, there, length in zip(np.indices(touched.shape), first, outer, strict=True)
        if length > 1
    ]
    return np.logical_and.reduce(inside)


def kernel_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def kernel_of(params: Any) -> str:
    """Returns the layer's largest parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return kernel_name(max(leaves, key=lambda leaf: leaf[1].size)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_a_unit_holds_the_weights_of_one_output(name: str) -> None:
    convention, (run, params, outputs) = LAYERS[name]()

    def total_of_one_output(params: Any) -> jax.Array:
        made = run(params)
        return jnp.sum(made[(..., *[1] * outputs)])

    gradient = jax.jit(jax.grad(total_of_one_output))(params)
    kernel = kernel_of(params)
    by_name = {kernel_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(gradient)}
    feeds = np.asarray(by_name[kernel]) != 0
    assert 0 < feeds.sum() < feeds.size
    np.testing.assert_array_equal(unit_of(convention, params, kernel, feeds), feeds)


@pytest.mark.parametrize(
    ("convention", "params"),
    [
        (optax_agc.haiku, {"embed": {"embeddings": jnp.ones((7, 4))}}),
        (optax_agc.flax, {"params": {"Embed_0": {"embedding": jnp.ones((7, 4))}}}),
        (optax_agc.flax, nnx.state(nnx.Embed(7, 4, rngs=nnx.Rngs(0)), nnx.Param)),
        (optax_agc.equinox, {"embedding": eqx.nn.Embedding(7, 4, key=KEY)}),
        (optax_agc.pytorch, {"wte.weight": jnp.ones((7, 4))}),
        (optax_agc.flax, {"params": {"position_embedding": jnp.ones((1, 7, 4))}}),
    ],
)
def test_a_unit_of_an_embedding_is_one_vector(convention: Convention, params: Any) -> None:
    name = kernel_of(params)
    shape = jax.tree.leaves(params)[0].shape
    looked_up = np.zeros(shape, bool)
    looked_up[..., 3, :] = True
    np.testing.assert_array_equal(unit_of(convention, params, name, looked_up), looked_up)


class Block(nn.Module):
    """Layers that a loop may contain."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        x = nn.Dense(6)(x)
        x = nn.MultiHeadDotProductAttention(num_heads=3, qkv_features=6)(x, x)
        return nn.LayerNorm()(nn.Conv(6, (3,))(x)), None


class Looped(nn.Module):
    """A loop over four blocks."""

    called: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        loop = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        return loop(name=self.called)(x, None)[0]


def haiku_block(x: jax.Array) -> jax.Array:
    return hk.LayerNorm(-1, True, True)(hk.Conv1D(6, 3)(hk.Linear(6)(x)))


def stacks() -> dict[str, tuple[Convention, Any]]:
    keys = jax.random.split(KEY, 4)

    def equinox_layer(key: jax.Array) -> eqx.Module:
        return eqx.nn.Sequential([eqx.nn.Conv1d(6, 6, 3, key=key), eqx.nn.LayerNorm(5)])

    return {
        "hk.layer_stack": (
            optax_agc.haiku,
            jax.eval_shape(
                hk.transform(hk.experimental.layer_stack(4)(haiku_block)).init, KEY, SEQUENCE
            ),
        ),
        "nn.scan": (optax_agc.flax, jax.eval_shape(Looped(None).init, KEY, SEQUENCE)),
        "nn.scan, own name": (
            optax_agc.flax.stacked("layers"),
            jax.eval_shape(Looped("layers").init, KEY, SEQUENCE),
        ),
        "nnx.vmap": (
            optax_agc.flax.stacked("layers"),
            {
                "layers": nnx.state(
                    nnx.eval_shape(
                        lambda: nnx.vmap(lambda key: nnx.Conv(6, 5, (3,), rngs=nnx.Rngs(key)))(keys)
                    ),
                    nnx.Param,
                )
            },
        ),
        "eqx.filter_vmap": (
            optax_agc.equinox.stacked("blocks"),
            {"blocks": eqx.filter_eval_shape(eqx.filter_vmap(equinox_layer), keys)},
        ),
    }


@pytest.mark.parametrize("name", stacks())
def test_stacked_layers_are_clipped_as_each_alone(name: str) -> None:
    convention, params = stacks()[name]
    alone = Convention(convention.name, convention.rule)
    grads, params = filled(params, 0.05), filled(params, seed=1)
    clipped = reference.update(
        optax_agc.adaptive_grad_clip(0.05, unit_axes=convention), grads, params
    )
    agc = optax_agc.adaptive_grad_clip(0.05, unit_axes=alone)
    one = jax.jit(lambda grads, params: agc.update(grads, agc.init(params), params)[0])
    layers = [one(*jax.tree.map(lambda x, i=i: x[i], (grads, params))) for i in range(4)]
    expected = jax.tree.map(lambda *layer: np.stack(layer), *layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), clipped, expected)
    pairs = zip(jax.tree.leaves(clipped), jax.tree.leaves(grads), strict=True)
    assert any(0 < np.mean(np.asarray(a) != b) < 1 for a, b in pairs), "some are, some are not"


def test_stacked_vectors_are_not_decayed() -> None:
    """Weight decay spares gains and biases, stacked or not."""
    params = {
        "__layer_stack_1": {"w": jnp.ones((3, 4, 5)), "gain": jnp.ones((3, 5))},
        "linear": {"w": jnp.ones((4, 5)), "b": jnp.ones(5)},
    }
    assert optax_agc.kernels(params, optax_agc.haiku) == {
        "__layer_stack_1": {"w": True, "gain": False},
        "linear": {"w": True, "b": False},
    }
    recipe = optax_agc.sgd_agc(1.0, weight_decay=0.1, unit_axes=optax_agc.haiku)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = recipe.update(zeros, recipe.init(params), params)
    moved = jax.tree.map(lambda x: bool(jnp.any(x)), updates)
    assert moved == optax_agc.kernels(params, optax_agc.haiku)


def test_attention_of_flax() -> None:
    """Each feature of each head is a unit; the output projection has one unit a feature."""
    ones = {"query": (8, 2, 4), "key": (8, 2, 4), "value": (8, 2, 4), "out": (2, 4, 8)}
    params = {name: {"kernel": jnp.ones(shape)} for name, shape in ones.items()}
    ratios = shapes_of_units(params, optax_agc.flax)
    shapes = {name: ratio["kernel"].shape for name, ratio in ratios.items()}
    projection = (1, 2, 4)
    assert shapes == {"query": projection, "key": projection, "value": projection, "out": (1, 1, 8)}
    attention = nn.MultiHeadDotProductAttention(num_heads=2)
    with_bias = jax.eval_shape(attention.init, KEY, SEQUENCE, SEQUENCE)
    ratios = shapes_of_units(with_bias, optax_agc.flax)["params"]
    assert ratios["query"]["bias"].shape == (1, 1), "a bias is one unit, however many its axes"
    assert ratios["out"]["kernel"].shape == (1, 1, 6)


@pytest.mark.parametrize(
    ("convention", "params"),
    [
        # A stack without a name: Dense [L, I, O], or DenseGeneral, or a convolution.
        (optax_agc.flax, {"mlp": {"kernel": jnp.ones((3, 4, 5))}}),
        (optax_agc.flax, {"mlp": {"kernel": jnp.ones((3, 4, 5)), "bias": jnp.ones((3, 5))}}),
        (optax_agc.flax, {"mlp": {"kernel": jnp.ones((4, 4, 5)), "bias": jnp.ones((4, 5))}}),
        (optax_agc.flax, {"norm": {"scale": jnp.ones((3, 4)), "bias": jnp.ones((3, 4))}}),
        (optax_agc.flax, {"query": {"kernel": jnp.ones((3, 8, 2, 4))}}),
        (optax_agc.flax, nn.ConvTranspose(5, (3, 3), transpose_kernel=True).init(KEY, IMAGE)),
        (optax_agc.haiku, {"linear": {"w": jnp.ones((3, 4, 5)), "b": jnp.ones((3, 5))}}),
        (optax_agc.equinox, {"l": {"weight": jnp.ones((3, 5, 4)), "bias": jnp.ones((3, 5))}}),
        (optax_agc.equinox, {"l": {"weight": jnp.ones((3, 5, 4)), "bias": None}}),
        (optax_agc.pytorch, {"up.weight": jnp.ones((4, 3, 2, 2)), "up.bias": jnp.ones(6)}),
    ],
)
def test_unrecognized_units_are_named_in_the_error(convention: Convention, params: Any) -> None:
    message = rf"units of (mlp|norm|query|params|linear|l|up)/.*{convention.name}\.override"
    with pytest.raises(ValueError, match=message):
        shapes_of_units(params, convention)


def test_overrides_take_precedence_over_the_convention() -> None:
    params = {"mlp": {"kernel": jnp.ones((3, 4, 5))}, "other": {"kernel": jnp.ones((4, 5))}}

    def mixer(path: Any, param: jax.Array) -> tuple[int, ...] | None:
        return (0, 1) if path[0].key == "mlp" else None

    ratios = shapes_of_units(params, optax_agc.flax.override(mixer))
    assert ratios["mlp"]["kernel"].shape == (1, 1, 5)
    assert ratios["other"]["kernel"].shape == (1, 5)


@pytest.mark.parametrize(
    "name",
    [
        "nfnet_micro",
        "nf_convnet",
        pytest.param("resnet50", marks=pytest.mark.slow),
        "efficientnet_b0",
    ],
)
def test_our_networks_have_the_same_units_by_rank_and_by_name(name: str) -> None:
    import nfnets_jax

    model = nfnets_jax.create_model(name, num_classes=10)
    params, _ = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
    by_rank, by_name = (
        jax.eval_shape(lambda p, axes=axes: optax_agc.unit_ratios(p, p, unit_axes=axes), params)
        for axes in (None, optax_agc.haiku)
    )
    assert by_rank == by_name
