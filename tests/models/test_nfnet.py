import functools
import re
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.errors import InputError
from nfnets_jax.kernels.remat import keep_convolutions
from nfnets_jax.models.nfnet import NFBlock, WSConv2D
from nfnets_jax.models.prepare import prepare
from tests import golden

PUBLISHED = [
    *(f"nfnet_f{i}{plus}" for plus in ("", "_plus") for i in range(8)),
    *(f"nf_resnet{layers}" for layers in (50, 101, 152, 200, 288, 600)),
    *(f"nf_regnet_b{i}" for i in range(9)),
]
# Of each family one that is small, with equal blocks in a row.
TINY: dict[str, Any] = {"depth": (2,), "width": (32,), "strides": (1,), "group_size": 16}
SMALL: dict[str, dict[str, Any]] = {
    "nfnet_micro": {"depth": (1, 3, 1)},
    "nf_resnet50": {
        "depth": (1, 3),
        "width": (32, 64),
        "stem": ((16, 2),),
        "strides": (1, 2),
        "se_ratio": 0.5,
    },
    "nf_regnet_b0": {
        "depth": (1, 3),
        "width": (16, 32),
        "stem": ((16, 2),),
        "strides": (1, 2),
        "dropout_rate": 0.0,
    },
}


def test_spatial_kernels_may_be_convolved_as_they_are() -> None:
    """A depthwise convolution by kernels that are standardized beforehand is the same without."""

    def run(standardized: bool) -> hk.Transformed:
        conv = functools.partial(WSConv2D, 8, 3, groups=8, standardized=standardized, name="conv")
        return hk.without_apply_rng(hk.transform(lambda x: conv()(x)))

    images = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    params = jax.jit(run(True).init)(jax.random.key(1), images)
    weights = np.asarray(params["conv"]["w"])
    assert weights.shape == (3, 3, 1, 8)
    centered = weights - weights.mean(axis=(0, 1, 2))
    kernel = jnp.asarray(centered / (9 * centered.var(axis=(0, 1, 2))) ** 0.5)
    others = {"conv": {"w": kernel, "bias": params["conv"]["bias"]}}
    expected = run(True).apply(params, images)
    np.testing.assert_allclose(run(False).apply(others, images), expected, atol=1e-5)

    shape: dict[str, Any] = {**TINY, "group_size": 1, "standardizes_spatial": False}
    model = nfnets_jax.create_model("nfnet_micro", 10, **shape)
    tree, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    without = {module.split("/")[-1] for module, values in tree.items() if "gain" not in values}
    assert without == {"conv1", "conv1b", "linear", "linear_1", "nf_block", "nf_block_1"}


@functools.cache
def shapes(name: str) -> dict[str, dict[str, list[int]]]:
    model = nfnets_jax.create_model(name)
    init = functools.partial(model.init, jax.random.key(0))
    params, _ = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return {m: {p: list(x.shape) for p, x in ps.items()} for m, ps in params.items()}


@pytest.mark.parametrize(
    "name", ["nfnet_f0", "nfnet_f3", "nfnet_f0_plus", "nf_resnet50", "nf_regnet_b0"]
)
def test_parameter_tree_is_the_published_one(name: str) -> None:
    assert shapes(name) == golden.load("parameter_trees.json")[name]


@pytest.mark.parametrize(
    "name",
    # The largest take long to trace.
    [
        pytest.param(n, marks=pytest.mark.slow) if re.match("nfnet_f[2-7]|nf_resnet600", n) else n
        for n in PUBLISHED
    ],
)
def test_parameter_count_is_the_published_one(name: str) -> None:
    count = sum(int(np.prod(s)) for module in shapes(name).values() for s in module.values())
    assert count == golden.load("parameter_counts.json")[name]


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50", "nf_regnet_b0"])
def test_logits_and_gradients_are_the_published_ones(name: str) -> None:
    expected = golden.load(f"{name}.json")
    model = nfnets_jax.create_model(name)
    params = golden.parameters(shapes(name))
    images = golden.images(expected["batch"], expected["image_size"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs, _ = model.apply(params, {}, None, jnp.asarray(images), is_training=False)
        return jnp.mean(outputs["logits"] ** 2), outputs

    (_, outputs), grads = run(params)
    logits, std = np.asarray(outputs["logits"]), expected["logits_std"]
    np.testing.assert_allclose(logits[:, :8], expected["logits_first8"], rtol=0, atol=1e-4 * std)
    assert logits.mean() == pytest.approx(expected["logits_mean"], abs=1e-4 * std)
    assert logits.std() == pytest.approx(std, rel=1e-4)
    assert np.mean(outputs["pool"]) == pytest.approx(expected["pool_mean"], rel=1e-3)
    assert np.std(outputs["pool"]) == pytest.approx(expected["pool_std"], rel=1e-4)
    for path, norm in expected["grad_norms"].items():
        module, param = path.rsplit("/", 1)
        assert np.linalg.norm(np.ravel(grads[module][param])) == pytest.approx(norm, rel=1e-3), path


@pytest.mark.parametrize(("name", "std"), [("nf_resnet50", 0.01), ("nf_regnet_b0", 0.0)])
def test_classifiers_start_as_in_the_authors_code(name: str, std: float) -> None:
    """``fc_init`` in ``nf_resnet.py`` and ``nf_regnet.py`` of deepmind-research's ``nfnets``."""
    model = nfnets_jax.create_model(name, 1000, **SMALL[name])
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    assert float(np.std(params[model.classifier]["w"])) == pytest.approx(std, rel=0.02)


def test_small_networks_keep_the_resolution_of_small_images() -> None:
    model = nfnets_jax.create_model("nfnet_micro", num_classes=10, features=True)
    images = jnp.zeros((2, 8, 8, 1))
    outputs, _ = jax.eval_shape(
        lambda rng: model.apply(*model.init(rng, images), None, images, False), jax.random.key(0)
    )
    assert {name: outputs[name].shape[1:3] for name in outputs if "stage" in name} == {
        "stage_1": (8, 8),
        "stage_2": (4, 4),
        "stage_3": (2, 2),
    }


def test_a_new_network_is_its_shortcuts() -> None:
    """With skip gains of zero the branches do not matter."""
    model = nfnets_jax.create_model("nfnet_micro", num_classes=10)
    images = jnp.asarray(golden.images(2, 8))
    params, state = model.init(jax.random.key(0), images)
    scrambled = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 1.0 if "conv1" in path[0].key else x, params
    )
    run = jax.jit(lambda params: model.apply(params, state, None, images, False)[0]["logits"])
    np.testing.assert_array_equal(run(params), run(scrambled))


def test_an_examples_random_draws_do_not_depend_on_its_batch() -> None:
    model = nfnets_jax.create_model(
        "nfnet_micro", 10, dropout_rate=0.5, stochastic_depth_rate=0.9, **TINY
    )
    images = jnp.asarray(golden.images(6, 8))
    params, state = model.init(jax.random.key(0), images)
    params = jax.tree.map(lambda x: x + 0.5 if x.ndim == 0 else x, params)  # Branches matter.
    keys = jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def run(keys: jax.Array, images: jax.Array) -> jax.Array:
        return model.apply(params, state, keys, images, True)[0]["logits"]

    whole = run(keys, images)
    parts = jnp.concatenate([run(keys[:2], images[:2]), run(keys[2:], images[2:])])
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    assert np.abs(whole - run(jax.random.split(jax.random.key(2), 6), images)).max() > 1e-3
    np.testing.assert_allclose(run(jax.random.key(1), images), whole, atol=1e-6)
    np.testing.assert_allclose(run(jax.random.PRNGKey(1), images), whole, atol=1e-6)


def test_bfloat16_computes_near_float32() -> None:
    images = jnp.asarray(golden.images(4, 8))
    outputs = []
    for precision in ("float32", "bfloat16"):
        model = nfnets_jax.create_model(
            "nfnet_micro", 10, precision=precision, features=True, **TINY
        )
        params, state = model.init(jax.random.key(0), images)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
        outputs.append(
            jax.jit(model.apply, static_argnums=4)(params, state, None, images, False)[0]
        )
    full, half = outputs
    assert half["stage_1"].dtype == jnp.bfloat16
    assert half["logits"].dtype == half["pool"].dtype == jnp.float32
    np.testing.assert_allclose(half["logits"], full["logits"], atol=0.1 * np.std(full["logits"]))


@functools.cache
def loss_and_gradient(name: str, stacked: bool = False, **overrides: Any) -> Any:
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    model = nfnets_jax.create_model(name, 10, stochastic_depth_rate=0.5, **SMALL[name], **overrides)
    params, state = model.init(jax.random.key(0), images)
    # A skip gain of zero would hide the branches.
    params = jax.tree.map(lambda param: param + 0.5 if param.ndim == 0 else param, params)
    if stacked:
        params = model.stacked(params)

    @jax.jit
    @jax.value_and_grad
    def loss(params: Any) -> jax.Array:
        outputs, _ = model.apply(params, state, jax.random.key(2), images, True)
        return jnp.sum(jnp.square(outputs["logits"]))

    return model.unstacked(loss(params))


@pytest.mark.parametrize(
    ("name", "looped_blocks", "remat"),
    [
        ("nfnet_micro", 1, "block"),
        ("nfnet_micro", 100, "full"),
        pytest.param("nfnet_micro", 1, "none", marks=pytest.mark.slow),
        pytest.param("nfnet_micro", 1, "full", marks=pytest.mark.slow),
        pytest.param("nf_resnet50", 1, "block", marks=pytest.mark.slow),
        pytest.param("nf_regnet_b0", 1, "full", marks=pytest.mark.slow),
    ],
)
def test_loops_and_rematerialization_change_nothing(
    name: str, looped_blocks: int, remat: str
) -> None:
    expected = loss_and_gradient(name, looped_blocks=100, remat="none")
    actual = loss_and_gradient(name, looped_blocks=looped_blocks, remat=remat)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_stacked_parameters_have_the_same_value_and_gradient() -> None:
    expected = loss_and_gradient("nfnet_micro", looped_blocks=100, remat="none")
    actual = loss_and_gradient("nfnet_micro", stacked=True, looped_blocks=2)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max()
        ),
        actual,
        expected,
    )


def test_a_blocks_residuals_are_the_outputs_of_its_convolutions() -> None:
    config = nfnets_jax.create_model("nfnet_micro").config
    x = jnp.ones((2, 8, 8, 128))

    def block(x: jax.Array, prepared: bool) -> jax.Array:
        conv = functools.partial(WSConv2D, prepared=prepared)
        return NFBlock(config, 128, 128, conv=conv)(x, beta=0.9)

    network = hk.transform(block)
    weights = prepare(network.init(jax.random.key(0), x, False), jnp.float32)
    run = keep_convolutions(lambda weights, x: network.apply(weights, None, x, True))
    _, backward = jax.vjp(run, weights, x)
    given = {id(array) for array in jax.tree.leaves((weights, x))}
    kept = [array.shape for array in jax.tree.leaves(backward) if id(array) not in given]
    assert kept == [(2, 8, 8, 64)] * 3 + [(2, 8, 8, 128)]


@pytest.mark.slow
@pytest.mark.parametrize("looped_blocks", [1, 100])
def test_rematerialization_saves_memory(looped_blocks: int) -> None:
    def memory(remat: str) -> int:
        model = nfnets_jax.create_model(
            "nfnet_micro",
            10,
            width=(32,),
            depth=(4,),
            strides=(1,),
            group_size=16,
            looped_blocks=looped_blocks,
            remat=remat,
        )
        images = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32)
        params, _ = jax.eval_shape(model.init, jax.random.key(0), images)

        @jax.jit
        @jax.grad
        def gradient(params: Any, images: jax.Array) -> jax.Array:
            return jnp.sum(model.apply(params, {}, None, images, True)[0]["logits"])

        plan = gradient.lower(params, images).compile().memory_analysis()
        assert plan is not None
        return plan.temp_size_in_bytes

    kept = memory("none")
    assert memory("block") < 0.75 * kept
    assert memory("full") < 0.75 * kept


def test_unknown_options_are_refused() -> None:
    with pytest.raises(InputError, match="no remat 'blocks'; there are none, block, full"):
        nfnets_jax.create_model("nfnet_micro", remat="blocks")
    with pytest.raises(InputError, match="no activation 'rleu'; nearest: .*relu"):
        nfnets_jax.create_model("nf_resnet50", activation="rleu")
    with pytest.raises(InputError, match="not width 4, depth 3, strides 4"):
        nfnets_jax.create_model("nf_resnet50", depth=(3, 4, 6))
