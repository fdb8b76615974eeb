from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets_jax import optax_agc

SHAPES = [(), (7,), (1, 9), (6, 5), (4, 3, 2), (3, 3, 4, 8), (1, 1, 6, 2), (2, 3, 3, 4, 5)]


def random_tree(seed: int, scale: float) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        f"parameter {i}": jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
        for i, shape in enumerate(SHAPES)
    }


@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.01, 1.0, 1e6])
@pytest.mark.parametrize("param_scale", [0.0, 1.0])
def test_equals_optax(scale: float, param_scale: float) -> None:
    grads, params = random_tree(0, scale), random_tree(1, param_scale)
    ours, theirs = optax_agc.adaptive_grad_clip(0.01), optax.adaptive_grad_clip(0.01)
    actual, _ = ours.update(grads, ours.init(params), params)
    expected, _ = theirs.update(grads, theirs.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, expected)


def plain(grad: np.ndarray, weight: np.ndarray, clipping: float, eps: float) -> np.ndarray:
    """The paper's formula, a unit at a time, the last axis counting the units."""
    clipped = grad.astype(np.float64)
    for unit in range(grad.shape[-1]):
        norm = np.sqrt((clipped[..., unit] ** 2).sum())
        bound = clipping * max(np.sqrt((weight[..., unit].astype(np.float64) ** 2).sum()), eps)
        if norm > bound:
            clipped[..., unit] *= bound / norm
    return clipped


def test_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 3, 4, 8)).astype(np.float32)
    weight[..., 3] = 0
    grad = (rng.standard_normal(weight.shape) * np.geomspace(1e-3, 10, 8)).astype(np.float32)
    agc = optax_agc.adaptive_grad_clip(0.05, eps=1e-2)
    clipped, _ = agc.update({"w": jnp.asarray(grad)}, agc.init({}), {"w": jnp.asarray(weight)})
    expected = plain(grad, weight, 0.05, 1e-2)
    np.testing.assert_allclose(clipped["w"], expected, rtol=1e-5)
    changed = (np.abs(expected - grad) > 1e-6 * np.abs(grad)).any((0, 1, 2))
    assert 0 < changed.sum() < 8, "the test has units that are clipped and units that are not"


def test_unit_axes_overrule_the_rank() -> None:
    rng = np.random.default_rng(0)
    weight, grad = (rng.standard_normal((5, 4)).astype(np.float32) for _ in range(2))

    def rows(path: Any, param: jax.Array) -> int | None:
        return 1 if path[-1].key == "torch" else None

    params = {"torch": jnp.asarray(weight.T), "haiku": jnp.asarray(weight)}
    grads = {"torch": jnp.asarray(grad.T), "haiku": jnp.asarray(grad)}
    agc = optax_agc.adaptive_grad_clip(0.01, unit_axes=rows)
    clipped, _ = agc.update(grads, agc.init(params), params)
    np.testing.assert_allclose(clipped["torch"].T, clipped["haiku"], rtol=1e-6)
    np.testing.assert_allclose(clipped["haiku"], plain(grad, weight, 0.01, 1e-3), rtol=1e-5)


def test_bfloat16_gradients_are_measured_in_float32() -> None:
    params = {"w": jnp.ones((4096, 2), jnp.bfloat16)}
    agc = optax_agc.adaptive_grad_clip(0.01)
    clipped, _ = agc.update(params, agc.init(params), params)
    assert clipped["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(clipped["w"].astype(np.float32), 0.01, rtol=0.01)


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


def test_sgd_agc_by_hand() -> None:
    """Two steps of one clipped matrix, one clipped bias and a classifier that is left alone."""
    rng = np.random.default_rng(0)
    params = {
        "net/~/conv": {"w": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)},
        "net/~/linear": {"w": rng.standard_normal((2, 2))},
    }
    grads = [jax.tree.map(lambda p: rng.standard_normal(p.shape), params) for _ in range(2)]
    optimizer = optax_agc.sgd_agc(0.5, weight_decay=0.1)
    actual, state = jax.tree.map(jnp.float32, params), optimizer.init(params)
    momenta = jax.tree.map(np.zeros_like, params)
    for grad in grads:
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grad), state, actual)
        actual = optax.apply_updates(actual, updates)
        for module, leaves in params.items():
            for name, weight in leaves.items():
                step = grad[module][name]
                if name == "bias":
                    step = plain(step[:, None], weight[:, None], 0.01, 1e-3)[:, 0]
                elif module == "net/~/conv":
                    step = plain(step, weight, 0.01, 1e-3)
                if name == "w":
                    step = step + 0.1 * weight
                momenta[module][name] = 0.9 * momenta[module][name] + step
                params[module][name] = weight - 0.5 * (step + 0.9 * momenta[module][name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), actual, params)


def test_wrong_use_is_named() -> None:
    agc = optax_agc.adaptive_grad_clip()
    with pytest.raises(ValueError, match=r"update\(gradients, state, params\)"):
        agc.update({}, agc.init({}))
    deep = {"layer": {"w": jnp.ones((2,) * 6)}}
    with pytest.raises(ValueError, match="layer/w has 6 axes"):
        agc.update(deep, agc.init(deep), deep)


def test_without_clipping_the_recipe_is_sgd() -> None:
    params = {"linear": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}}
    grads = jax.tree.map(lambda param: 100 * param, params)
    ours = optax_agc.sgd_agc(0.1, weight_decay=0.0, clipping=None)
    expected = optax.sgd(0.1, momentum=0.9, nesterov=True)
    updates = [opt.update(grads, opt.init(params), params)[0] for opt in (ours, expected)]
    jax.tree.map(np.testing.assert_allclose, *updates)
