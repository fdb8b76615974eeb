from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax import inference
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model
from nfnets_jax.weights.published import Tree
from tests import golden
from tests.models.test_nf_network import SMALL

FAMILIES = {
    **SMALL,
    "nf_resnet50": {**SMALL["nf_resnet50"], "se_ratio": 0.0},
    "nf_resnet101": SMALL["nf_resnet50"],
}


def parameters(model: Model, channels: int = 3) -> Tree:
    """The golden values."""
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    return golden.parameters(
        {m: {n: list(p.shape) for n, p in ps.items()} for m, ps in params.items()}
    )


def assert_close(actual: inference.Outputs, expected: inference.Outputs, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        error = np.abs(np.asarray(actual[name], np.float32) - np.asarray(array, np.float32)).max()
        assert error < tolerance * np.std(array, dtype=np.float32), name
        assert actual[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("name", "looped_blocks"), [*((name, 2) for name in FAMILIES), ("nfnet_micro", 9)]
)
def test_folded_networks_compute_the_same(name: str, looped_blocks: int) -> None:
    settings = {**FAMILIES[name], "looped_blocks": looped_blocks}
    model = nfnets_jax.create_model(name, 7, features=True, **settings)
    params, images = parameters(model), jnp.asarray(golden.images(2, 16))
    # A branch that is off, and one that is all but off.
    skips = [module for module in params if "skip_gain" in params[module]]
    params[skips[1]]["skip_gain"] = np.float32(0)
    params[skips[2]]["skip_gain"] = np.float32(-1e-30)
    expected, _ = jax.jit(lambda params: model.apply(params, {}, None, images, False))(params)
    assert_close(inference.fold(model, params)(images), expected, 1e-4)


def test_half_precision_stays_what_it_is() -> None:
    one = {"width": (64,), "depth": (1,), "strides": (1,)}
    model = nfnets_jax.create_model("nfnet_micro", 7, features=True, precision="bfloat16", **one)
    params, images = parameters(model), jnp.asarray(golden.images(2, 8))
    expected, _ = jax.jit(lambda params: model.apply(params, {}, None, images, False))(params)
    folded = inference.fold(model, params)
    assert folded.weights.stages[0].first.convolutions[0].kernel.dtype == jnp.bfloat16
    assert_close(folded(images), expected, 0.2)


def test_batch_normalized_networks_are_refused() -> None:
    with pytest.raises(InputError, match="resnet50 is batch-normalized; networks without can be"):
        inference.fold(nfnets_jax.create_model("resnet50"), {})


@pytest.mark.slow
def test_folded_f0_gives_the_published_logits(shared: Path) -> None:
    expected = golden.load(shared, "nfnet_f0.json")
    model = nfnets_jax.create_model("nfnet_f0")
    images = jnp.asarray(golden.images(expected["batch"], expected["image_size"]))
    logits = inference.fold(model, parameters(model))(images)["logits"]
    std = expected["logits_std"]
    np.testing.assert_allclose(logits[:, :8], expected["logits_first8"], rtol=0, atol=1e-4 * std)
