import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from tests import golden

# Of the networks as published.
COUNTS = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet50d": 25_576_264,
    "seresnet50": 28_088_024,
    "seresnext26d_32x4d": 16_809_512,
    "seresnext50_32x4d": 27_559_896,
    "seresnext101d_32x8d": 93_588_280,
}
SMALL: dict[str, Any] = {"depth": (1, 1), "width": (32, 64), "group_width": 8}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    init = functools.partial(nfnets_jax.create_model(name).init, jax.random.key(0))
    params, _ = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == COUNTS[name]


def run(model: Any, is_training: bool) -> Any:
    return jax.jit(lambda params, state, x: model.apply(params, state, None, x, is_training))


def test_running_statistics_come_to_be_those_of_the_batch() -> None:
    """Then inference gives what training gives."""
    model = nfnets_jax.create_model("resnet50d", 10, features=True, **SMALL)
    images = 3 + 2 * jnp.asarray(golden.images(8, 32))
    params, state = model.init(jax.random.key(0), images)
    params = jax.tree.map(lambda x: x + 0.5 if x.ndim == 1 else x, params)  # Branches matter.
    train, infer = run(model, True), run(model, False)
    unaware, same = infer(params, state, images)
    jax.tree.map(np.testing.assert_array_equal, state, same)
    for _ in range(100):
        expected, state = train(params, state, images)
    outputs, _ = infer(params, state, images)
    for name in ("stage_1", "stage_2", "logits"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-3)
    assert np.abs(unaware["logits"] - expected["logits"]).max() > 0.01


@pytest.mark.parametrize("sync_axis", ["", "devices"])
def test_devices_normalize_together_only_if_asked_to(sync_axis: str) -> None:
    model = nfnets_jax.create_model("resnet50", 10, sync_axis=sync_axis, **SMALL)
    whole = nfnets_jax.create_model("resnet50", 10, **SMALL)
    images = jnp.asarray(golden.images(4, 32)) * jnp.arange(1, 5)[:, None, None, None]
    params, state = whole.init(jax.random.key(0), images)
    expected, expected_state = run(whole, True)(params, state, images)
    split = jax.pmap(
        lambda x: model.apply(params, state, None, x, True), "devices", devices=jax.devices()[:2]
    )
    outputs, states = split(images.reshape(2, 2, *images.shape[1:]))
    difference = np.abs(outputs["logits"].reshape(4, 10) - expected["logits"]).max()
    assert (difference < 1e-4) == bool(sync_axis)
    if sync_axis:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-4),
            states,
            expected_state,
        )
