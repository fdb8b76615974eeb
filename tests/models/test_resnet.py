import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.errors import InputError
from tests import golden

SMALL: dict[str, Any] = {"depth": (1, 1), "width": (32, 64), "group_width": 8}


def run(model: Any, is_training: bool) -> Any:
    return jax.jit(lambda params, state, x: model.apply(params, state, None, x, is_training))


def test_running_statistics_converge_to_the_batchs() -> None:
    """Inference then equals training."""
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
def test_devices_normalize_together_only_with_sync_axis(sync_axis: str) -> None:
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


@pytest.mark.parametrize("route", ["skipinit", "fixup", "none"])
def test_networks_without_normalization_start_as_published(route: str) -> None:
    """SkipInit and Fixup start as the shortcuts, with branches that learn."""
    model = nfnets_jax.create_model(
        "resnet26_small", 10, features=True, normalization=route, **SMALL
    )
    images = jnp.asarray(golden.images(4, 8))
    params, state = model.init(jax.random.key(0), images)
    assert state == {}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs, _ = model.apply(params, state, None, images, True)
        return jnp.sum(outputs["stage_2"] ** 2), outputs["stage_2"]

    gradient, outputs = run(params, images)
    kernel = {"w": params["ResNet/block/conv0"]["w"] + 1.0}
    _, changed = run({**params, "ResNet/block/conv0": kernel}, images)
    assert (np.abs(changed - outputs).max() == 0) == (route != "none")
    last = {"skipinit": "norm2_gain", "fixup": "conv2", "none": "conv2"}[route]
    assert all(np.abs(leaf).max() > 0 for leaf in gradient[f"ResNet/block/{last}"].values())
    # Without normalization an example does not depend on the others.
    _, among_others = run(params, jnp.concatenate([images[:2], 3 * images[2:]]))
    np.testing.assert_allclose(among_others[:2], outputs[:2], atol=1e-5)


def test_fixup_scales_branches_down_by_their_number() -> None:
    """Zhang et al. 2019, section 3: for L branches of 3 layers, by the fourth root of L."""
    images = jnp.zeros((1, 8, 8, 3))
    usual, _ = nfnets_jax.create_model("resnet26_small").init(jax.random.key(0), images)
    fixup, _ = nfnets_jax.create_model("fixup_resnet26_small").init(jax.random.key(0), images)
    for convolution, factor in (("conv0", 8**-0.25), ("conv1", 8**-0.25), ("conv_shortcut", 1)):
        module = f"ResNet/block_2/{convolution}"
        ours, theirs = np.std(fixup[module]["w"]), np.std(usual[module]["w"])
        assert ours / theirs == pytest.approx(factor, rel=0.05)
    assert not np.any(fixup["ResNet/block/conv2"]["w"]) and not np.any(fixup["ResNet/linear"]["w"])


def test_an_unknown_normalization_is_refused() -> None:
    with pytest.raises(InputError, match="no normalization 'batches'; there are batch, skipinit"):
        nfnets_jax.create_model("resnet50", normalization="batches")
