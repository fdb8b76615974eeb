"""``adaptive_grad_clip`` next to optax's and to the paper's formula."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nfnets_jax import optax_agc
from nfnets_jax.optax_agc import clipping
from tests.optax_agc import reference
from tests.optax_agc.reference import random

SHAPES = [(), (7,), (1, 9), (6, 5), (4, 3, 2), (3, 3, 4, 8), (1, 1, 6, 2), (2, 3, 3, 4, 5), (0, 3)]
# Shapes and the axes inside a unit: few, as each is compiled.
LAYOUTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((5,), (0,)),
    ((3, 4), (0,)),
    ((4, 3), (1,)),
    ((2, 3, 4), (0, 2)),
    ((2, 2, 3, 4), (0, 1, 3)),
    ((2, 1, 3, 2, 2), (1, 2, 3)),
]
DTYPES = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2, jnp.float16: 2e-3, jnp.complex64: 1e-5}
EPS = 1e-3


def random_tree(seed: int, scale: float) -> dict[str, jax.Array]:
    return {f"parameter {i}": random(seed + i, shape, scale) for i, shape in enumerate(SHAPES)}


def test_equals_optax() -> None:
    ours, theirs = (
        jax.jit(lambda g, p, agc=agc: agc.update(g, agc.init(p), p)[0])
        for agc in (optax_agc.adaptive_grad_clip(0.01), optax.adaptive_grad_clip(0.01))
    )
    for scale in (0.0, 1e-4, 0.01, 1.0, 1e6):
        for param_scale in (0.0, 1.0):
            grads, params = random_tree(0, scale), random_tree(50, param_scale)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-6),
                ours(grads, params),
                theirs(grads, params),
            )


def test_one_huge_gradient_changes_no_other() -> None:
    grads = {"huge": random(0, (6, 5), 1e30), "plain": random(1, (5, 4))}
    params = {"huge": random(2, (6, 5)), "plain": random(3, (5, 4))}
    clipped = reference.update(optax_agc.adaptive_grad_clip(0.01), grads, params)
    for name, grad in grads.items():
        expected = reference.clip(
            np.asarray(grad, np.float64), np.asarray(params[name], np.float64), (0,), 0.01, EPS
        )
        np.testing.assert_allclose(clipped[name], expected, rtol=1e-5)


def test_axes_for_all_parameters_as_optax_takes_them() -> None:
    grads, params = ({"a": random(i, (3, 4)), "b": random(i + 2, (2, 5, 2))} for i in (0, 9))
    ours = reference.update(optax_agc.adaptive_grad_clip(0.01, 1e-3, 1), grads, params)
    theirs = reference.update(optax.adaptive_grad_clip(0.01, 1e-3, 1), grads, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs)


@functools.cache
def compiled(axes: tuple[int, ...]) -> Callable[..., jax.Array]:
    """Returns ``(gradient, weight, clipping) -> clipped gradient``, compiled."""

    def clip(grad: jax.Array, weight: jax.Array, clipping: jax.Array) -> jax.Array:
        agc = optax_agc.adaptive_grad_clip(clipping, EPS, lambda path, param: axes)
        return agc.update(grad, agc.init(weight), weight)[0]

    return jax.jit(clip)


def units_scaled(array: np.ndarray, axes: tuple[int, ...], scales: list[float]) -> np.ndarray:
    """Multiplies each unit by a scale of its own."""
    outer = [1 if axis in axes else length for axis, length in enumerate(array.shape)]
    return array * np.resize(scales, outer)


layouts = st.sampled_from(LAYOUTS)
dtypes = st.sampled_from(list(DTYPES))
seeds = st.integers(0, 2**31)
clippings = st.sampled_from([1e-3, 0.01, 0.3, 2.0])
# From gradients whose squares vanish to those whose squares are infinite; and zeros.
scales = st.lists(
    st.one_of(st.just(0.0), st.integers(-25, 30).map(lambda power: 10.0**power)), min_size=1
)
weight_scales = st.lists(st.sampled_from([0.0, 1e-6, 0.1, 1.0, 1e4]), min_size=1)


@settings(max_examples=200, deadline=None)
@given(layouts, dtypes, seeds, scales, weight_scales, clippings)
def test_it_is_the_papers_formula(
    layout: tuple[Any, Any], dtype: Any, seed: int, scale: Any, weight_scale: Any, clipping: float
) -> None:
    (shape, axes), rng = layout, np.random.default_rng(seed)
    grad, weight = (
        units_scaled(rng.uniform(-1, 1, shape), axes, by) for by in (scale, weight_scale)
    )
    if dtype == jnp.complex64:
        grad, weight = (x * np.exp(1j * rng.uniform(0, 6, shape)) for x in (grad, weight))
    if dtype == jnp.float16:
        grad = np.clip(grad, -6e4, 6e4)
    grad, weight = (np.asarray(jnp.asarray(x, dtype)) for x in (grad, weight))
    clipped = compiled(axes)(grad, weight, clipping)
    assert clipped.dtype == dtype
    wide = np.complex128 if dtype == jnp.complex64 else np.float64
    expected = reference.clip(grad.astype(wide), weight.astype(wide), axes, clipping, EPS)
    # What is too small for the dtype's normal numbers is zero to XLA.
    tiny = float(jnp.finfo(dtype).tiny)
    np.testing.assert_allclose(
        np.asarray(clipped).astype(wide), expected, rtol=DTYPES[dtype], atol=4 * tiny
    )


@settings(max_examples=60, deadline=None)
@given(layouts, seeds, st.sampled_from([1.0, 2.0, 1e5, 1e20, 1e30]))
def test_above_the_threshold_the_gradients_scale_does_not_matter(
    layout: tuple[Any, Any], seed: int, factor: float
) -> None:
    shape, axes = layout
    grad, weight = random(seed, shape), random(seed + 1, shape)
    clipped = compiled(axes)(grad, weight, 1e-3)
    assume(np.all(np.asarray(clipped) != np.asarray(grad)))
    np.testing.assert_allclose(compiled(axes)(grad * factor, weight, 1e-3), clipped, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(layouts, seeds, st.sampled_from([0.0, 1.0, 1e30, np.inf, np.nan]))
def test_units_are_independent(layout: tuple[Any, Any], seed: int, factor: float) -> None:
    shape, axes = layout
    outer = [axis for axis in range(len(shape)) if axis not in axes]
    assume(outer)
    grad, weight = random(seed, shape, 0.03), random(seed + 1, shape)
    first = tuple(0 if axis == outer[0] else slice(None) for axis in range(len(shape)))
    changed = grad.at[first].multiply(factor)
    before, after = (compiled(axes)(g, weight, 0.02) for g in (grad, changed))
    np.testing.assert_array_equal(np.delete(before, 0, outer[0]), np.delete(after, 0, outer[0]))


@settings(max_examples=60, deadline=None)
@given(layouts, seeds)
def test_permuted_units_are_clipped_alike(layout: tuple[Any, Any], seed: int) -> None:
    shape, axes = layout
    outer = [axis for axis in range(len(shape)) if axis not in axes]
    assume(outer)
    grad, weight = random(seed, shape, 0.03), random(seed + 1, shape)
    order = np.random.default_rng(seed).permutation(shape[outer[0]])
    permuted = compiled(axes)(*(jnp.take(x, order, outer[0]) for x in (grad, weight)), 0.02)
    expected = jnp.take(compiled(axes)(grad, weight, 0.02), order, outer[0])
    np.testing.assert_allclose(permuted, expected, rtol=1e-6)


def test_float64_is_measured_in_float64() -> None:
    with jax.enable_x64(True):
        grad, weight = np.array([[3e200, 1e-9]]).T, np.array([[1.0, 0.0]]).T
        clipped = compiled((0,))(jnp.asarray(grad), jnp.asarray(weight), 0.01)
        assert clipped.dtype == jnp.float64
        np.testing.assert_allclose(clipped, grad * (0.01 / 3e200), rtol=1e-12)


def test_bfloat16_gradients_are_measured_in_float32() -> None:
    params = {"w": jnp.ones((4096, 2), jnp.bfloat16)}
    clipped = reference.update(optax_agc.adaptive_grad_clip(0.01), params, params)
    assert clipped["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(clipped["w"].astype(np.float32), 0.01, rtol=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_units_that_are_not_finite_pass_unchanged(bad: float) -> None:
    weight, grad = jnp.ones((3, 4)), random(0, (3, 4), 100.0).at[1, 2].set(bad)
    clipped = np.asarray(compiled((0,))(grad, weight, 0.01))
    np.testing.assert_array_equal(clipped[:, 2], grad[:, 2])
    finite = [0, 1, 3]
    expected = reference.clip(np.asarray(grad), np.asarray(weight), (0,), 0.01, EPS)
    np.testing.assert_allclose(clipped[:, finite], expected[:, finite], rtol=1e-5)


def test_a_step_can_be_differentiated_at_zero() -> None:
    """Meta-learning needs it: skip gains start at zero, and gradients of zero are common."""
    agc = optax_agc.adaptive_grad_clip(0.01)

    def stepped(grads: Any, params: Any) -> jax.Array:
        updates, _ = agc.update(grads, agc.init(params), params)
        return optax.tree.sum(updates) + optax.tree.sum(optax.apply_updates(params, updates))

    zeros = {"w": jnp.zeros((3, 2)), "gain": jnp.zeros(())}
    for tree in jax.jit(jax.grad(stepped, argnums=(0, 1)))(zeros, zeros):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def test_unit_axes_take_precedence_over_the_rank() -> None:
    weight, grad = random(0, (5, 4)), random(1, (5, 4))

    def rows(path: Any, param: jax.Array) -> int | None:
        return -1 if path[-1].key == "torch" else None

    params, grads = {"torch": weight.T, "haiku": weight}, {"torch": grad.T, "haiku": grad}
    clipped = reference.update(optax_agc.adaptive_grad_clip(unit_axes=rows), grads, params)
    np.testing.assert_allclose(clipped["torch"].T, clipped["haiku"], rtol=1e-6)


def test_clipping_by_schedule() -> None:
    params, grads = {"w": jnp.ones((4, 1))}, {"w": jnp.ones((4, 1))}
    agc = optax_agc.adaptive_grad_clip(optax.linear_schedule(0.5, 0.1, 2))
    state, update = agc.init(params), jax.jit(agc.update)
    for expected in (0.5, 0.3, 0.1, 0.1):
        clipped, state = update(grads, state, params)
        np.testing.assert_allclose(clipped["w"], expected, rtol=1e-6)


def test_clipping_by_group() -> None:
    params = {"attention": {"w": jnp.ones((4, 1))}, "mlp": {"w": jnp.ones((4, 1))}}
    params["embed"] = {"embeddings": jnp.ones((4, 1))}
    groups = {"attention/": lambda step: 0.2, "embed": None, "": 0.1}
    clipped = reference.update(optax_agc.adaptive_grad_clip(groups), params, params)
    found = {name: float(leaves[next(iter(leaves))][0, 0]) for name, leaves in clipped.items()}
    assert found == pytest.approx({"attention": 0.2, "mlp": 0.1, "embed": 1.0})
    partial = optax_agc.adaptive_grad_clip({"attention/": 0.2, "mlp": 0.1})
    with pytest.raises(ValueError, match="nothing of embed/embeddings"):
        partial.update(params, partial.init(params), params)


def test_empty_trees_and_none() -> None:
    agc = optax_agc.adaptive_grad_clip()
    assert agc.update({}, agc.init({}), {})[0] == {}
    params = {"w": jnp.ones((2, 2)), "none": None, "frozen": jnp.ones(3)}
    grads = {"w": jnp.ones((2, 2)), "none": None, "frozen": None}
    clipped, _ = jax.jit(agc.update)(grads, agc.init(params), params)
    assert (clipped["none"], clipped["frozen"]) == (None, None)
    np.testing.assert_allclose(clipped["w"], 0.01, rtol=1e-6)


def test_masks() -> None:
    params = {"a": {"w": jnp.ones((4, 1)), "b": jnp.ones(4)}, "c": {"w": jnp.ones((4, 1))}}
    for mask in ({"a": True, "c": False}, lambda params: {"a": True, "c": False}):
        clipped = reference.update(optax_agc.adaptive_grad_clip(mask=mask), params, params)
        assert float(clipped["a"]["b"][0]) == pytest.approx(0.01)
        assert float(clipped["c"]["w"][0, 0]) == 1
    spared = optax_agc.all_but(r"^a/w", "c/")(params)
    assert spared == {"a": {"w": False, "b": True}, "c": {"w": False}}
    with pytest.raises(ValueError, match="no parameter has 'head' in its name"):
        optax_agc.all_but("head")(params)


def test_only_the_classifiers_matrix_is_spared() -> None:
    leaf = jnp.zeros((2, 2))
    params = {
        "NFNet/~/linear": {"w": leaf, "b": leaf[0]},
        "NFNet/~/final_conv": {"w": leaf},
        "NFNet/~/nf_block/~/squeeze_excite/~/linear": {"w": leaf, "b": leaf[0]},
    }
    spared = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, clipped in jax.tree_util.tree_leaves_with_path(
            optax_agc.all_but_classifier(params)
        )
        if not clipped
    ]
    assert spared == ["NFNet/~/linear/w"]


TWO = {"layer": {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}}


@pytest.mark.parametrize(
    ("grads", "params", "unit_axes", "message"),
    [
        (TWO, None, None, r"call update\(gradients, state, params\)"),
        (TWO, {"layer": {"w": TWO["layer"]["w"]}}, None, "gradients without .*: layer/b"),
        ({"layer": {"w": TWO["layer"]["w"]}}, TWO, None, "parameters without .*: layer/b"),
        ({"layer": {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}}, TWO, None,
         r"layer/w: gradient \(4, 3\), but parameter \(3, 4\)"),
        (TWO, TWO, 1, r"layer/b, \(4,\), has no axis 1, which unit_axes gave"),
        (TWO, TWO, lambda path, param: -3, r"layer/., .* has no axis -3"),
        ({"layer": {"w": jnp.ones((2,) * 6)}}, {"layer": {"w": jnp.ones((2,) * 6)}}, None,
         "layer/w has 6 axes"),
    ],
)  # fmt: skip
def test_wrong_use_names_the_parameter(
    grads: Any, params: Any, unit_axes: Any, message: str
) -> None:
    agc = optax_agc.adaptive_grad_clip(unit_axes=unit_axes)
    with pytest.raises(ValueError, match=message):
        agc.update(grads, agc.init(params), params)


@pytest.mark.parametrize("norms", [clipping.norms_by_branch, clipping.norms_by_shape])
@pytest.mark.parametrize(
    ("shape", "axes", "count"),
    [
        ((3, 3, 4, 6), (0, 1, 2), 1),
        ((3, 3, 4, 6), (0, 1, 2), 11),
        ((5, 7), (1,), 1),
        ((9,), (0,), 3),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_norms_are_exact_in_every_form(
    norms: Any, shape: tuple[int, ...], axes: tuple[int, ...], count: int, dtype: str
) -> None:
    """Also of a gradient whose squares overflow, beside others that are small."""
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((2, count, *shape))
    if dtype == "complex64":
        numbers = numbers + 1j * rng.standard_normal(numbers.shape)
    numbers[0, -1] *= 1e25
    numbers[0, 0, ..., :2] *= 1e-8
    gradients, params = (list(jnp.asarray(x, dtype)) for x in numbers)

    @jax.jit
    def run(gradients: Any, params: Any) -> Any:
        return norms(
            [
                clipping.Leaf("w", gradient, param, axes, 0, False, ((),) * len(shape))
                for gradient, param in zip(gradients, params, strict=True)
            ]
        )

    for *arrays, found in zip(gradients, params, run(gradients, params), strict=True):
        for array, norm in zip(arrays, found, strict=True):
            exact = np.asarray(array).astype(np.complex128)
            expected = np.sqrt(np.sum(np.abs(exact) ** 2, axis=axes, keepdims=True))
            np.testing.assert_allclose(norm, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("threshold", "eps", "message"),
    [
        (-1.0, 1e-3, "clipping is -1.0; it takes a number above 0"),
        (0.0, 1e-3, "clipping is 0.0"),
        (np.float32(np.nan), 1e-3, "clipping is nan"),
        ({"conv": 0.1, "": -2}, 1e-3, "clipping of '' is -2|clipping is -2"),
        (0.01, -1, "eps is -1; it takes a number from 0 on"),
        (0.01, np.nan, "eps is nan"),
        (0.01, np.inf, "eps is inf"),
    ],
)
def test_senseless_numbers_are_refused(threshold: Any, eps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optax_agc.adaptive_grad_clip(threshold, eps)
    with pytest.raises(ValueError, match=message):
        optax_agc.sgd_agc(0.1, clipping=threshold, eps=eps)
    with pytest.raises(ValueError, match=message):
        optax_agc.with_statistics(optax.sgd(0.1), threshold, eps)


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_dtypes_are_kept_without_implicit_promotion(dtypes: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    gradients, params = (
        {"w": jnp.asarray(scale * rng.standard_normal((4, 6)), dtype), "b": jnp.ones(6, dtype)}
        for scale, dtype in zip((1, 0.1), dtypes, strict=True)
    )
    agc = optax_agc.adaptive_grad_clip(jnp.float32(0.01))
    expected, _ = agc.update(gradients, agc.init(params), params)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = jax.jit(agc.update)(gradients, agc.init(params), params)
    assert updates["w"].dtype == gradients["w"].dtype
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x, float), np.asarray(y, float)),
        updates,
        expected,
    )


def test_integers_have_no_gradient_to_clip() -> None:
    params = {"count": jnp.arange(3), "w": jnp.ones((2, 3))}

    def loss(params: Any) -> jax.Array:
        return 100 * jnp.sum(params["w"] * params["count"])

    gradients = jax.grad(loss, allow_int=True)(params)
    assert gradients["count"].dtype == jax.dtypes.float0
    agc = optax_agc.adaptive_grad_clip(0.01)
    updates, _ = agc.update(gradients, agc.init(params), params)
    assert updates["count"].dtype == jax.dtypes.float0
    np.testing.assert_allclose(updates["w"][:, 1:], 0.01, rtol=1e-5)
    ratios = optax_agc.unit_ratios(gradients, params)
    assert ratios["w"].shape == (1, 3)
