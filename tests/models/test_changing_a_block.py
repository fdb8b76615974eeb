"""The worked example of docs/changing_a_block.md, run as it stands."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.models.registry import Model
from nfnets_jax.serving.frozen import freeze

PAGE = Path(__file__).parents[2] / "docs" / "changing_a_block.md"


@pytest.fixture(scope="module")
def model() -> Model:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    return names["model"]


def gradient(model: Model, params: Any, images: jax.Array) -> Any:
    @jax.jit
    @jax.value_and_grad
    def loss(params: Any) -> jax.Array:
        outputs, _ = model.apply(params, {}, jax.random.key(2), images, True)
        return jnp.sum(jnp.square(outputs["logits"]))

    return model.unstacked(loss(params))


def test_the_changed_block_runs_in_loops_and_rematerialized(model: Model) -> None:
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    small: dict[str, Any] = {"width": (32,), "depth": (3,), "strides": (1,), "group_size": 16}
    results = []
    for looped_blocks, remat in ((100, "none"), (2, "block")):
        network = nfnets_jax.create_model(
            model.name, 10, looped_blocks=looped_blocks, remat=remat, **small
        )
        params, _ = network.init(jax.random.key(0), images)
        params = jax.tree.map(lambda param: param + 0.5 if param.ndim == 0 else param, params)
        results.append(gradient(network, network.stacked(params), images))
    plain, looped = results
    extra = "NFNet/~/nf_block_2/~/conv1c"
    assert np.abs(plain[1][extra]["w"]).max() > 0
    assert "NFNet/~/nf_block/~/excite_bottleneck/~/linear" in plain[1]
    for ours, theirs in zip(jax.tree.leaves(looped), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_the_changed_block_is_served_unfolded(model: Model) -> None:
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    params, state = model.init(jax.random.key(0), images)
    expected, _ = jax.jit(model.apply, static_argnums=4)(params, state, None, images, False)
    logits = freeze(model, params)(images)["logits"]
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=1e-6)
