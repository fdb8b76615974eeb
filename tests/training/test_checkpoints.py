import contextlib
import functools
from pathlib import Path

import chex
import jax
import numpy as np

from nfnets_jax import optax_agc
from nfnets_jax.training.checkpoints import Checkpoints


def test_what_is_saved_comes_back_and_the_oldest_go(tmp_path: Path) -> None:
    params = {"NFNet/~/nf_block/~/conv0": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
    state = {"params": params, "opt": optax_agc.sgd_agc(lambda step: 0.1).init(params)}
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", keep=2)) as saved:
        assert saved.latest_step() is None
        for step in (1, 2, 3):
            later = jax.tree.map(functools.partial(np.add, step), state)
            saved.save(step, later, {"at": step})
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", keep=2)) as saved:
        assert saved.latest_step() == 3
        restored, progress = saved.restore(3, jax.eval_shape(lambda: state))
    assert progress == {"at": 3}
    chex.assert_trees_all_equal_structs(restored, state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b) + 3), restored, state)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {"2", "3"}
