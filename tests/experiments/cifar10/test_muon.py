"""Muon, next to NumPy's singular values and Adam written out."""

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from experiments.cifar10.muon import create_muon
from nfnets_jax.errors import InputError


def settings(**changes: float) -> ConfigDict:
    fields = {"momentum": 0.8, "nesterov": False, "weight_decay": 0.0, "clipping": 0.0}
    return ConfigDict({**fields, **changes})


def test_muon_is_orthogonal_for_kernels_and_adam_for_all_else() -> None:
    schedule = optax.linear_schedule(0.2, 0.1, 10)
    optimizer = create_muon(settings(), schedule)
    rng = np.random.default_rng(0)
    params = {"conv": {"w": rng.standard_normal((3, 3, 4, 8)), "b": rng.standard_normal(8)}}
    state = optimizer.init(params)
    momentum, mean, square = np.zeros((3, 3, 4, 8)), np.zeros(8), np.zeros(8)
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)
        updates, state = optimizer.update(grads, state, params)
        momentum = 0.8 * momentum + grads["conv"]["w"]
        mean = 0.9 * mean + 0.1 * grads["conv"]["b"]
        square = 0.99 * square + 0.01 * grads["conv"]["b"] ** 2
    rate = float(schedule(2))
    adam = mean / (1 - 0.9**3) / np.sqrt(square / (1 - 0.99**3))
    np.testing.assert_allclose(updates["conv"]["b"], -0.2 * rate * adam, rtol=1e-4)
    moved = params["conv"]["w"] + np.asarray(updates["conv"]["w"])
    norm = np.linalg.norm(params["conv"]["w"])
    np.testing.assert_allclose(np.linalg.norm(moved), norm, rtol=1e-5)
    # Along the momentum's singular vectors only the diagonal has moved, all else is scaled alike.
    inputs, _, outputs = np.linalg.svd(momentum.reshape(36, 8), full_matrices=False)
    before, after = (
        inputs.T @ kernel.reshape(36, 8) @ outputs.T for kernel in (params["conv"]["w"], moved)
    )
    elsewhere = ~np.eye(8, dtype=bool)
    scale = np.median(after[elsewhere] / before[elsewhere])
    np.testing.assert_allclose(after[elsewhere], scale * before[elsewhere], atol=2e-3 * rate)
    step = np.diag(before - after / scale) / rate
    assert all((step > 0.6) & (step < 1.3))


def test_stacked_kernels_move_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    params, grads = ({"w": rng.standard_normal((3, 3, 3, 4, 8), np.float32)} for _ in range(2))
    optimizer = create_muon(settings(nesterov=True), optax.constant_schedule(0.1))
    together, _ = optimizer.update(grads, optimizer.init(params), params)
    for layer in range(3):
        param, grad = (jax.tree.map(lambda x, i=layer: x[i], tree) for tree in (params, grads))
        alone, _ = optimizer.update(grad, optimizer.init(param), param)
        np.testing.assert_allclose(together["w"][layer], alone["w"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["weight_decay", "clipping"])
def test_decay_and_clipping_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"optimizer.{name} is 0.1; muon takes 0"):
        create_muon(settings(**{name: 0.1}), optax.constant_schedule(0.1))
