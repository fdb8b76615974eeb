"""Every family trains: one finite step of a small relative on two devices, saved and restored."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax import optax_agc
from nfnets_jax.training import step
from nfnets_jax.training.checkpoints import Checkpoints
from tests.training.test_step import dataset

SMALL: dict[str, dict[str, Any]] = {
    "nf_resnet50": {"width": (16, 32), "depth": (1, 1), "stem": ((8, 2),), "strides": (1, 2)},
    "nf_regnet_b0": {"width": (16, 32), "depth": (1, 1), "stem": ((8, 2),), "strides": (1, 2)},
    "seresnext26d_32x4d": {
        "width": (16, 32),
        "depth": (1, 1),
        "groups": 2,
        "stochastic_depth_rate": 0.1,
        "remat": "block",
    },
}


@pytest.mark.parametrize(
    "name",
    ["seresnext26d_32x4d", *(pytest.param(n, marks=pytest.mark.slow) for n in SMALL if "nf_" in n)],
)
def test_trains_on_two_devices_and_is_restored(name: str, tmp_path: Path) -> None:
    model = nfnets_jax.create_model(name, 10, dropout_rate=0.2, **SMALL[name])
    optimizer, devices = optax_agc.sgd_agc(0.1), jax.devices()[:2]
    update = step.make_update(
        model, optimizer, dataset(3, 0.5, 0.3), label_smoothing=0.1, ema_decay=0.9, devices=devices
    )
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (4, 16, 16, 3), np.uint8), "label": np.arange(4)}
    new = step.create_state(model, optimizer, (1, 16, 16, 3), 0)
    before = step.fetch(step.replicate(new, devices))
    state, _ = update(step.replicate(new, devices), step.transfer(batch, devices))
    after = step.fetch(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    for old, trained in ((before.params, after.params), (before.model_state, after.model_state)):
        changed = jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), old, trained))
        assert any(changed) or not changed  # Networks without normalization have no state.
    for leaf in jax.tree.leaves(state.model_state):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as saved:
        saved.save(1, after, {})
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as saved:
        restored = saved.restore_latest(jax.eval_shape(lambda: after), print)
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored[1], after)
