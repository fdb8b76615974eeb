"""Every model trains: one finite step on two devices, saved and restored."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax import optax_agc
from nfnets_jax.devices import fetch, replicate, transfer
from nfnets_jax.models.efficientnet import Stage
from nfnets_jax.models.registry import Model
from nfnets_jax.training import step
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.weights.run import read_model_state
from tests.training.test_step import dataset

# Of each family one that is small.
SMALL: dict[str, dict[str, Any]] = {
    "nf_resnet50": {"width": (16, 32), "depth": (1, 1), "stem": ((8, 2),), "strides": (1, 2)},
    "nfnet_micro_bn": {"width": (16,), "depth": (1,), "strides": (2,), "group_size": 8},
    "nf_regnet_b0": {"width": (16, 32), "depth": (1, 1), "stem": ((8, 2),), "strides": (1, 2)},
    "seresnext26d_32x4d": {
        "width": (16, 32),
        "depth": (1, 1),
        "groups": 2,
        "stochastic_depth_rate": 0.1,
        "remat": "block",
    },
    "fixup_resnet26_small": {"width": (16, 32), "depth": (1, 1)},
    "nf_convnet": {"width": (8, 16)},
    "efficientnet_b0": {"stages": (Stage(1, 3, 1, 16, 1), Stage(6, 3, 2, 16, 2))},
}
# Told by other tests, too.
SLOW = {name for name in SMALL if name.startswith(("nf_", "seresnext", "fixup"))}
# Larger ones are tried by their shapes alone: compilation takes minutes, and memory.
LARGEST = 45_000_000
SIZE = 16


def make_update(model: Model) -> tuple[Any, Any]:
    optimizer, devices = optax_agc.sgd_agc(0.1), jax.devices()[:2]
    update = step.make_update(
        model, optimizer, dataset(3, 0.5, 0.3), label_smoothing=0.1, ema_decay=0.9, devices=devices
    )
    return update, lambda: step.create_state(model, optimizer, (1, SIZE, SIZE, 3), 0)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8), "label": np.arange(4)}


def check_training(model: Model, folder: Path) -> None:
    devices = jax.devices()[:2]
    update, create_state = make_update(model)
    new = create_state()
    before = fetch(replicate(new, devices))
    state, metrics = update(replicate(new, devices), transfer(batch(), devices))
    after = fetch(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, metrics)))
    for old, trained in ((before.params, after.params), (before.model_state, after.model_state)):
        changed = jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), old, trained))
        assert any(changed) or not changed  # Networks without batch normalization have no state.
    for leaf in jax.tree.leaves(state.model_state):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    with contextlib.closing(Checkpoints(folder, keep=1)) as saved:
        saved.save(1, after, {})
    with contextlib.closing(Checkpoints(folder, keep=1)) as saved:
        restored = saved.restore_latest(jax.eval_shape(lambda: after), print)
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored[1], after)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SMALL]
)
def test_a_small_one_of_each_family_trains_and_is_restored(name: str, tmp_path: Path) -> None:
    check_training(nfnets_jax.create_model(name, 10, dropout_rate=0.2, **SMALL[name]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", nfnets_jax.list_models())
def test_every_model_trains_and_is_restored(name: str, tmp_path: Path) -> None:
    model = nfnets_jax.create_model(name, 10)
    update, create_state = make_update(model)
    new = jax.eval_shape(create_state)
    if sum(leaf.size for leaf in jax.tree.leaves(new.params)) <= LARGEST:
        check_training(model, tmp_path)
        return
    replicated = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), new)
    after, metrics = jax.eval_shape(update, replicated, transfer(batch(), jax.devices()[:2]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), replicated
    )
    assert metrics["loss"].shape == (2,)


def test_running_statistics_are_averaged_like_the_parameters(tmp_path: Path) -> None:
    """EfficientNets' code averages ``moving_mean`` and ``moving_variance`` too.

    ``get_ema_vars`` of models/official/efficientnet in tensorflow/tpu.
    """
    model = nfnets_jax.create_model("resnet26_small", 10, width=(8,), depth=(1,))
    update, create_state = make_update(model)
    devices, new = jax.devices()[:2], create_state()
    new = new._replace(ema_model_state=new.model_state)
    state, averages = replicate(new, devices), new.model_state
    for step_number in range(3):
        state, _ = update(state, transfer(batch(), devices))
        decay = min(0.9, (1 + step_number) / (10 + step_number))
        averages = jax.tree.map(
            lambda average, now, decay=decay: decay * average + (1 - decay) * now,
            averages,
            fetch(state).model_state,
        )
    after = fetch(state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after.ema_model_state,
        averages,
    )
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as saved:
        saved.save(3, after, {})
    for average, expected in ((True, after.ema_model_state), (False, after.model_state)):
        read = read_model_state(tmp_path, average)
        jax.tree.map(np.testing.assert_array_equal, read, expected)


class StateOfBefore(NamedTuple):
    step: Any
    key: Any
    params: Any
    model_state: Any
    opt_state: Any
    ema_params: Any


def test_a_checkpoint_without_averaged_statistics_is_restored(tmp_path: Path) -> None:
    """As those were that were written before there was the average."""
    before = StateOfBefore(*map(np.float32, range(6)))
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as saved:
        saved.save(1, before, {})
    template = step.TrainState(*before)
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as saved:
        restored = saved.restore_latest(template, print)
    assert restored is not None and restored.state == template


def test_running_statistics_are_the_mean_over_the_devices() -> None:
    model = nfnets_jax.create_model("resnet26_small", 10, width=(16,), depth=(1,))
    update, create_state = make_update(model)
    devices, images = jax.devices()[:2], (batch()["image"] / np.float32(255) - 0.5) / 0.3
    new = create_state()
    after, _ = update(replicate(new, devices), transfer(batch(), devices))
    run = jax.jit(lambda images: model.apply(new.params, new.model_state, None, images, True)[1])
    states = [run(jnp.asarray(images[half])) for half in (slice(2), slice(2, 4))]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *states)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        fetch(after.model_state),
        expected,
    )
    differ = jax.tree.map(lambda a, b: not np.allclose(a, b, rtol=1e-2), *states)
    assert any(jax.tree.leaves(differ))
