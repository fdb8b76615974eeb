import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model
from nfnets_jax.serving import frozen
from nfnets_jax.serving.export import export, export_onnx
from nfnets_jax.serving.frozen import Frozen, Outputs
from nfnets_jax.weights.published import Tree
from tests import golden
from tests.models.test_nfnet import SMALL

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


def assert_close(actual: Outputs, expected: Outputs, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        error = np.abs(np.asarray(actual[name], np.float32) - np.asarray(array, np.float32)).max()
        assert error < tolerance * np.std(array, dtype=np.float32), name
        assert actual[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("name", "looped_blocks"),
    [*((name, 2) for name in FAMILIES), pytest.param("nfnet_micro", 9, marks=pytest.mark.slow)],
)
def test_folded_networks_compute_the_same(name: str, looped_blocks: int) -> None:
    settings = {**FAMILIES[name], "looped_blocks": looped_blocks}
    model = nfnets_jax.create_model(name, 7, features=True, **settings)
    params, images = parameters(model), jnp.asarray(golden.images(2, 16))
    # A branch that is off, and one that is all but off.
    skips = [module for module in params if "skip_gain" in params[module]]
    params[skips[1]]["skip_gain"] = np.zeros((), np.float32)
    params[skips[2]]["skip_gain"] = np.full((), -1e-30, np.float32)
    expected, _ = jax.jit(lambda params: model.apply(params, {}, None, images, False))(params)
    assert_close(frozen.fold(model, params)(images), expected, 1e-4)


def test_half_precision_stays_what_it_is() -> None:
    one = {"width": (64,), "depth": (1,), "strides": (1,)}
    model = nfnets_jax.create_model("nfnet_micro", 7, features=True, precision="bfloat16", **one)
    params, images = parameters(model), jnp.asarray(golden.images(2, 8))
    expected, _ = jax.jit(lambda params: model.apply(params, {}, None, images, False))(params)
    folded = frozen.fold(model, params)
    assert folded.weights["NFNet/~/nf_block/~/conv0"]["w"].dtype == jnp.bfloat16
    assert_close(folded(images), expected, 0.2)


@pytest.mark.parametrize("name", ["resnet50", "nf_convnet"])
def test_networks_with_statistics_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} cannot be folded; NFNets"):
        frozen.fold(nfnets_jax.create_model(name), {})


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50", "nf_regnet_b0", "resnet50"])
def test_features_are_there_at_four_strides(name: str) -> None:
    model = nfnets_jax.create_model(name, features=True)
    images = jax.ShapeDtypeStruct((2, 200, 200, 3), jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    outputs, _ = jax.eval_shape(
        lambda params, state, x: model.apply(params, state, None, x, False), params, state, images
    )
    for stage, (side, width) in enumerate(zip((50, 25, 13, 7), model.config.width, strict=True), 1):
        assert outputs[f"stage_{stage}"].shape == (2, side, side, width)


@pytest.fixture(scope="module")
def small() -> Frozen:
    """With grouped convolutions and a loop, for which platforms have forms of their own."""
    model = nfnets_jax.create_model("nfnet_micro", 7, depth=(1, 3, 1), looped_blocks=2)
    return frozen.fold(model, parameters(model))


def test_a_fresh_process_runs_the_artifact_with_jax_alone(tmp_path: Path, small: Frozen) -> None:
    (tmp_path / "artifact").write_bytes(export(small, (8, 8, 3)))
    blocked = ("haiku", "optax", "chex", "nfnets_jax", "orbax", "cv2")
    script = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import jax.export, numpy\n"
        "call = jax.export.deserialize(bytearray(open('artifact', 'rb').read())).call\n"
        "for n in 1, 3: numpy.savez(str(n), **call(numpy.load('images.npy')[:n]))\n"
    )
    images = golden.images(3, 8)
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    for count in (1, 3):
        expected = small(jnp.asarray(images[:count]))
        with np.load(tmp_path / f"{count}.npz") as outputs:
            assert outputs.keys() == {"logits", "pool"}
            for name, array in outputs.items():
                tolerance = 1e-5 * float(jnp.std(expected[name]))
                np.testing.assert_allclose(array, expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("platforms", "grouped", "dense"),
    [(["cpu"], False, True), (["cuda", "tpu"], True, False), (["cpu", "tpu"], True, True)],
)
def test_platforms_get_their_own_convolutions(
    small: Frozen, platforms: list[str], grouped: bool, dense: bool
) -> None:
    artifact = export(small, (8, 8, 3), platforms=platforms, batch=2)
    exported = jax.export.deserialize(bytearray(artifact))
    assert exported.platforms == tuple(platforms)
    assert exported.in_avals[0].shape == (2, 8, 8, 3)
    program = exported.mlir_module()
    # One dense convolution a group of 32 channels, or all 64 channels in two groups.
    assert ("feature_group_count = 2" in program) == grouped
    assert ("tensor<3x3x32x32xf32>) -> tensor<2x4x4x32xf32>" in program) == dense
    # The weights are there once, whatever the number of platforms.
    assert len(artifact) < 1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(small))


def test_unknown_platforms_are_refused(small: Frozen) -> None:
    with pytest.raises(InputError, match="no platform 'gpu'; there are cpu, cuda, rocm, tpu"):
        export(small, (8, 8, 3), platforms=["cpu", "gpu"])


def test_onnx_computes_the_same(small: Frozen) -> None:
    pytest.importorskip("jax2onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(export_onnx(small, (8, 8, 3)))
    images = golden.images(3, 8)
    expected = small(jnp.asarray(images))
    for output, array in zip(
        session.get_outputs(), session.run(None, {"images": images}), strict=True
    ):
        tolerance = 1e-4 * float(jnp.std(expected[output.name]))
        np.testing.assert_allclose(array, expected[output.name], rtol=0, atol=tolerance)


def test_onnx_names_its_missing_package(small: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match="pip install jax2onnx"):
        export_onnx(small, (8, 8, 3))


@pytest.mark.slow
def test_folded_f0_gives_the_published_logits() -> None:
    expected = golden.load("nfnet_f0.json")
    model = nfnets_jax.create_model("nfnet_f0")
    images = jnp.asarray(golden.images(expected["batch"], expected["image_size"]))
    logits = frozen.fold(model, parameters(model))(images)["logits"]
    std = expected["logits_std"]
    np.testing.assert_allclose(logits[:, :8], expected["logits_first8"], rtol=0, atol=1e-4 * std)
