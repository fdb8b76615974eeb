"""The recipes, and AGC inside of optax's own wrappers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets_jax import optax_agc
from tests.optax_agc import reference
from tests.optax_agc.reference import random

PARAMS = {"body": {"w": random(0, (5, 4)), "b": random(1, (4,))}, "head": {"w": random(2, (4, 3))}}
GRADS = jax.tree.map(lambda x: 3 * x[::-1], PARAMS)


def assert_close(actual: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), actual, expected)


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
                if name == "bias" or module == "net/~/conv":
                    step = reference.clip(step, weight, (0,), 0.01, 1e-3)
                if name == "w":
                    step = step + 0.1 * weight
                momenta[module][name] = 0.9 * momenta[module][name] + step
                params[module][name] = weight - 0.5 * (step + 0.9 * momenta[module][name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), actual, params)


def test_without_clipping_the_recipe_is_sgd() -> None:
    params = {"linear": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}}
    grads = jax.tree.map(lambda param: 100 * param, params)
    ours = optax_agc.sgd_agc(0.1, weight_decay=0.0, clipping=None)
    expected = optax.sgd(0.1, momentum=0.9, nesterov=True)
    updates = [opt.update(grads, opt.init(params), params)[0] for opt in (ours, expected)]
    jax.tree.map(np.testing.assert_allclose, *updates)


def test_a_step_of_large_arrays_and_its_derivative_are_those_of_sgd() -> None:
    params, grads = {"w": random(0, (128, 130))}, {"w": random(1, (128, 130))}
    ours = optax_agc.sgd_agc(0.1, weight_decay=0.2, clipping=None)
    decay = optax.add_decayed_weights(0.2)
    expected = optax.chain(decay, optax.sgd(0.1, momentum=0.9, nesterov=True))

    def derivative(optimizer: optax.GradientTransformation) -> Any:
        def moved(params: Any) -> tuple[jax.Array, Any]:
            updates, _ = optimizer.update(grads, optimizer.init(params), params)
            return jnp.sum(updates["w"] ** 2), updates

        return jax.jit(jax.grad(moved, has_aux=True))(params)

    jax.tree.map(assert_close, derivative(ours), derivative(expected))


def test_adamw_agc_is_adamw_of_clipped_gradients() -> None:
    ours = optax_agc.adamw_agc(0.1, b2=0.99, weight_decay=0.3, clipping=0.02)
    adamw = optax.adamw(0.1, b2=0.99, weight_decay=0.3)
    body = {
        name: reference.clip(np.asarray(g), np.asarray(PARAMS["body"][name]), (0,), 0.02, 1e-3)
        for name, g in GRADS["body"].items()
    }
    clipped = {"body": jax.tree.map(jnp.float32, body), "head": GRADS["head"]}
    expected = reference.update(adamw, clipped, PARAMS)
    # Of a vector there is no weight decay: what adamw did of it is taken away.
    expected["body"]["b"] += 0.1 * 0.3 * PARAMS["body"]["b"]
    assert_close(reference.update(ours, GRADS, PARAMS), expected)


def test_recipes_clip_the_classifier_with_a_mask_of_true() -> None:
    for mask, spared in ((None, True), (True, False), (optax_agc.all_but("body"), False)):
        optimizer = optax_agc.sgd_agc(1.0, momentum=0.0, weight_decay=0.0, mask=mask)
        updates = reference.update(optimizer, GRADS, PARAMS)
        assert bool(np.allclose(updates["head"]["w"], -GRADS["head"]["w"])) == spared


def test_multi_steps_clip_the_mean() -> None:
    agc = optax_agc.adaptive_grad_clip(0.01)
    steps = optax.MultiSteps(agc, 2)
    update = jax.jit(steps.update)
    parts = [jax.tree.map(lambda g, k=k: k * g, GRADS) for k in (0.5, 1.5)]
    _, state = update(parts[0], steps.init(PARAMS), PARAMS)
    updates, _ = update(parts[1], state, PARAMS)
    assert_close(updates, reference.update(agc, GRADS, PARAMS))


def test_hyperparameters_can_be_injected() -> None:
    inject = optax.inject_hyperparams(
        optax_agc.adaptive_grad_clip, static_args=("unit_axes", "mask")
    )
    agc = inject(clipping=0.5, unit_axes=optax_agc.haiku, mask=optax_agc.all_but_classifier)
    state = agc.init(PARAMS)
    state.hyperparams["clipping"] = jnp.float32(0.02)
    updates, _ = jax.jit(agc.update)(GRADS, state, PARAMS)
    plain = optax_agc.adaptive_grad_clip(0.02, mask=optax_agc.all_but_classifier)
    assert_close(updates, reference.update(plain, GRADS, PARAMS))


@pytest.mark.parametrize("recipe", [optax_agc.sgd_agc, optax_agc.adamw_agc])
def test_the_recipes_hyperparameters_can_be_injected(recipe: Any) -> None:
    optimizer = optax.inject_hyperparams(recipe)(learning_rate=0.1, clipping=0.02)
    updates, _ = jax.jit(optimizer.update)(GRADS, optimizer.init(PARAMS), PARAMS)
    assert_close(updates, reference.update(recipe(0.1, clipping=0.02), GRADS, PARAMS))


def test_groups_by_multi_transform() -> None:
    groups = {
        "tight": optax_agc.adaptive_grad_clip(0.01),
        "loose": optax_agc.adaptive_grad_clip(0.1),
    }
    labels = {"body": "tight", "head": "loose"}
    updates = reference.update(optax.multi_transform(groups, labels), GRADS, PARAMS)
    by_name = optax_agc.adaptive_grad_clip({"head/": 0.1, "": 0.01})
    assert_close(updates, reference.update(by_name, GRADS, PARAMS))
