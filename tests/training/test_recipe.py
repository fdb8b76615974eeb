import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments import recipes
from experiments.configs import efficientnet
from nfnets_jax import optax_agc
from nfnets_jax.errors import InputError
from nfnets_jax.training.finetuning import layer_depths
from nfnets_jax.training.recipe import create_optimizer, learning_rate_schedule, sgd_in_place


@pytest.mark.parametrize(
    ("decay_in_warmup", "decays"),
    [
        (True, ((5.1, 2), (7.1, 2), (7.3, 3), (24.1, 10), (349, 145))),
        (False, ((5.1, 0), (7.3, 0), (7.5, 1), (29.1, 10), (349, 143))),
    ],
)
def test_efficientnets_learn_by_their_papers_schedule(
    decay_in_warmup: bool, decays: tuple[tuple[float, int], ...]
) -> None:
    """A warm-up of 5 epochs; 0.97 every 2.4 epochs, counted from step 0 in the authors' code.

    ``build_learning_rate`` of models/official/efficientnet/utils.py in tensorflow/tpu.
    """
    config = efficientnet.get_config()
    assert config.optimizer.decay_in_warmup
    config.optimizer.decay_in_warmup = decay_in_warmup
    schedule, epoch = learning_rate_schedule(config), config.num_steps / 350
    assert schedule(round(2.5 * epoch)) == pytest.approx(0.128, rel=0.01)
    for epochs, times in decays:
        rate = 0.256 * 0.97**times
        assert schedule(round(epochs * epoch)) == pytest.approx(rate, rel=1e-4)


def test_efficientnets_biases_decay_and_their_normalization_does_not() -> None:
    """All but the variables of batch normalization, in main.py of the same code."""
    config = efficientnet.get_config()
    config.optimizer.update(name="sgd", weight_decay=0.5, momentum=0.0, nesterov=False)
    config.optimizer.update(warmup_fraction=0.0, base_learning_rate=1 / 16)
    names = ("w", "b", "bias", "scale", "offset", "gain", "skip_gain")
    params = {"conv": {name: np.ones((2, 2) if name == "w" else 2, np.float32) for name in names}}
    zeros = jax.tree.map(np.zeros_like, params)

    def decayed() -> set[str]:
        optimizer = create_optimizer(config, {})
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        changed = {name: np.ravel(update)[0] for name, update in updates["conv"].items()}
        assert set(changed.values()) == {0.0, -0.5}
        return {name for name, change in changed.items() if change}

    assert decayed() == {"w", "b", "bias"}
    config.optimizer.decay_biases = False
    assert decayed() == {"w"}


def test_a_linear_schedule_ends_at_zero() -> None:
    config = recipes.small_images("nfnet_micro", "digits", 8)
    config.update(batch_size=512, num_steps=110)
    config.optimizer.update(schedule="linear", base_learning_rate=0.05, warmup_fraction=1 / 11)
    schedule = learning_rate_schedule(config)
    for step, rate in ((0, 0.0), (5, 0.05), (10, 0.1), (60, 0.05), (109, 0.001), (110, 0.0)):
        assert schedule(step) == pytest.approx(rate, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("clipping", [0.0, 0.01])
def test_rmsprop_is_the_formula(clipping: float) -> None:
    config = efficientnet.get_config()
    config.optimizer.update(weight_decay=0.1, clipping=clipping)
    optimizer, schedule = create_optimizer(config, {}), learning_rate_schedule(config)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 1)).astype(np.float32)
    state = optimizer.init({"conv": {"w": jnp.asarray(weights)}})
    mean_square, velocity = np.ones_like(weights), np.zeros_like(weights)
    for step in range(4):
        gradient = rng.standard_normal((4, 1)).astype(np.float32)
        updates, state = optimizer.update(
            {"conv": {"w": jnp.asarray(gradient)}}, state, {"conv": {"w": jnp.asarray(weights)}}
        )
        if clipping:
            gradient *= clipping * np.linalg.norm(weights) / np.linalg.norm(gradient)
        gradient = gradient + 0.1 * weights
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        step_size = float(schedule(step)) * gradient / np.sqrt(mean_square + 1e-3)
        velocity = 0.9 * velocity - step_size
        np.testing.assert_allclose(updates["conv"]["w"], velocity, rtol=1e-4, atol=1e-12)
        weights = weights + velocity


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_stacked_layers_learn_as_each_alone(name: str) -> None:
    """Clipping, decay, norms and the learning rates of layers, for two steps."""
    config = efficientnet.get_config()
    config.optimizer.update(name=name, clipping=0.01, layer_decay=0.5, weight_decay=0.1)
    network: dict[str, Any] = {"depth": (3,), "width": (16,), "strides": (1,), "group_size": 8}
    model = nfnets_jax.create_model("nfnet_micro", 10, **network, looped_blocks=2)
    depths = layer_depths(model, 3)
    rng = np.random.default_rng(0)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    params, *grads = (
        jax.tree.map(lambda x, by=by: by * rng.standard_normal(x.shape, np.float32), params)
        for by in (1.0, 0.02, 0.02)
    )

    def trained(stacked: Callable[[Any], Any]) -> tuple[Any, Any]:
        optimizer = create_optimizer(config, stacked(depths))
        state, updates = optimizer.init(stacked(params)), None
        for gradient in grads:
            updates, state = jax.jit(optimizer.update)(stacked(gradient), state, stacked(params))
        return updates, state

    expected, actual = trained(lambda tree: tree), trained(model.stacked)
    assert len(jax.tree.leaves(actual)) < len(jax.tree.leaves(expected))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7),
        model.unstacked(actual),
        expected,
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "adam", "no optimizer.name 'adam'; there are sgd, rmsprop"),
        ("schedule", "step", "no optimizer.schedule 'step'; there are cosine, linear, exponential"),
        ("layer_decay", 2.0, "layer_decay is 2.0; it takes 0 to 1"),
    ],
)
def test_settings_that_are_not_known_are_named(field: str, value: object, message: str) -> None:
    config = efficientnet.get_config()
    config.optimizer[field] = value
    with pytest.raises(InputError, match=message):
        create_optimizer(config, {})


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_in_place_equals_the_packages(nesterov: bool) -> None:
    rng = np.random.default_rng(0)
    params = {"NFNet/~/conv": {"w": rng.standard_normal((3, 3, 4, 8), np.float32)}}
    packages = functools.partial(optax_agc.sgd_agc, unit_axes=optax_agc.haiku)
    ours, theirs = (create(0.1, 0.8, nesterov, 1e-3, 0.02) for create in (sgd_in_place, packages))
    states = [ours.init(params), theirs.init(params)]
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), params)
        moved, states[0] = ours.update(grads, states[0], params)
        expected, states[1] = theirs.update(grads, states[1], params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), moved, expected)
