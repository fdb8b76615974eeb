import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.lib.stride_tricks import sliding_window_view

import nfnets_jax
from experiments.cifar10 import model as nf_convnet
from nfnets_jax.data.normalization import normalize
from nfnets_jax.data.sources import ArraySource, open_dataset
from nfnets_jax.errors import InputError


def test_gradients_are_batch_normalizations_up_to_scale() -> None:
    rng = np.random.default_rng(0)
    shape, deviations = (4, 5, 6, 3), np.array([0.5, 2.0, 1.0])
    x = jnp.asarray(1 + deviations * rng.standard_normal(shape), jnp.float32)
    cotangent = jnp.asarray(rng.standard_normal(shape), jnp.float32)

    def normalized(x: jax.Array) -> jax.Array:
        return (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)

    value, pull = jax.vjp(nf_convnet.free_gradient, x)
    np.testing.assert_array_equal(value, x)
    expected = jax.vjp(normalized, x)[1](cotangent)[0] * x.std((0, 1, 2))
    np.testing.assert_allclose(pull(cotangent)[0], expected, rtol=1e-3, atol=1e-5)


def test_gradients_are_finite_where_xla_rematerializes_activations() -> None:
    # With this size and compilation the gradient of jnp.max in the head is nan.
    images = jax.random.normal(jax.random.key(0), (64, 24, 24, 3))
    model = nfnets_jax.create_model("nf_convnet", 10)
    params, state = model.init(jax.random.key(1), images[:1])

    def loss(params: Any) -> jax.Array:
        return jnp.sum(model.apply(params, state, None, images, True)[0]["logits"] ** 2)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(leaf).all()
        assert np.any(leaf)


@pytest.fixture(scope="module")
def pictures(shared: Path) -> jax.Array:
    """``[500, 32, 32, 3]``, normalized."""
    dataset = open_dataset("tfds:cifar10", str(shared / "data" / "tfds"))
    assert isinstance(dataset.test, ArraySource)
    return normalize(jnp.asarray(dataset.test.images[:500]), dataset.mean, dataset.std)


def test_the_stem_whitens_photographs(pictures: jax.Array) -> None:
    # Directions that hold little are damped.
    seen = np.asarray(nf_convnet.whiten(pictures))
    edges = np.concatenate([seen[:, -1], seen[:, :, -1]], axis=1)
    assert np.sqrt(np.mean(edges**2, (0, 1))).max() < 1.3
    seen = seen[:, :-1, :-1]
    np.testing.assert_array_equal(seen[..., 12:], -seen[..., :12])
    covariance = np.cov(seen[..., :12].reshape(-1, 12).T)
    assert np.diag(covariance).max() < 1.2
    assert np.diag(covariance).min() > 0.15
    assert np.linalg.cond(covariance) < 20
    patches = sliding_window_view(pictures, (2, 2), axis=(1, 2)).reshape(-1, 3, 2, 2)
    before = np.cov(patches.reshape(-1, 12).T)
    assert np.linalg.cond(before) > 10_000


@pytest.mark.parametrize("channels", [1, 6])
def test_other_images_are_refused(channels: int) -> None:
    with pytest.raises(InputError, match=f"takes images of 3 channels; these have {channels}"):
        nf_convnet.whiten(jnp.zeros((1, 8, 8, channels)))


@pytest.mark.slow
def test_equals_a_plain_network(pictures: jax.Array) -> None:
    model = nfnets_jax.create_model("nf_convnet", 10, width=(8, 16), features=True)
    params, state = model.init(jax.random.key(0), pictures[:2])
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # Biases are not to be nothing.
    _, state = model.apply(params, state, None, pictures[:20], True)
    outputs, _ = model.apply(params, state, None, pictures[:2], False)

    def gelu(x: jax.Array) -> jax.Array:
        return 1.7015043 * jax.nn.gelu(x, approximate=True)

    places = np.linspace(-9, 9, 10_001)
    density = np.exp(-(places**2) / 2)
    mean = np.sum(density * gelu(jnp.asarray(places))) / np.sum(density)

    def activate(x: jax.Array) -> jax.Array:
        return gelu(x) - mean

    def convolve(x: jax.Array, name: str) -> jax.Array:
        learned, known = params[f"NFConvNet/{name}"], state[f"NFConvNet/{name}"]
        layout = ("NHWC", "HWIO", "NHWC")
        seen = activate(x) - known["mean"]
        columns = learned["w"].reshape(-1, learned["w"].shape[-1])
        covariance = columns.T @ np.kron(known["pixels"], known["channels"]) @ columns
        kernel = learned["w"] / np.sqrt(np.diag(covariance))
        return learned["b"] + lax.conv_general_dilated(
            seen, kernel, (1, 1), "SAME", dimension_numbers=layout
        )

    x = nf_convnet.whiten(pictures[:2])
    for number, side in ((1, 16), (2, 8)):
        x = convolve(x, f"stage{number}_conv0").reshape(2, side, 2, side, 2, -1).max((2, 4))
        x = convolve(x, f"stage{number}_conv1")
        np.testing.assert_allclose(outputs[f"stage_{number}"], x, rtol=1e-4, atol=1e-4)
    pool = activate(x).max((1, 2))
    head = params["NFConvNet/linear"]
    expected = pool / 8 @ head["w"] + head["b"]
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-4)


def test_kernels_start_as_the_identity() -> None:
    model = nfnets_jax.create_model("nf_convnet", 10, width=(32, 32))
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 32))
    kernel = params["NFConvNet/stage1_conv1"]["w"]
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    np.testing.assert_allclose(y, x, rtol=1e-6)
    wider = params["NFConvNet/stage1_conv0"]["w"]
    np.testing.assert_allclose(np.sum(np.square(wider), (0, 1, 2)), 1, atol=0.4)
    assert np.std(wider[..., 24:]) > 0.05


def test_outputs_of_standardized_kernels_have_mean_0_and_variance_1() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((32, 18, 18, 8))
    rows = pixels[:, :-2] + 2 * pixels[:, 1:-1] + pixels[:, 2:]
    smooth = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    x = jnp.asarray(3 + smooth @ rng.standard_normal((8, 16)), jnp.float32)
    # Kernels of what pixels have in common, as they are learned.
    kernel = jnp.asarray(1 + rng.standard_normal((3, 3, 16, 32)), jnp.float32)
    known = nf_convnet.input_statistics(x)
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x - known.mean, kernel, (1, 1), "SAME", dimension_numbers=layout
    ) / np.sqrt(known.variances(kernel))
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=0.05)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=0.02)


def test_running_statistics_converge_in_all_layers(pictures: jax.Array) -> None:
    model = nfnets_jax.create_model("nf_convnet", 10, width=(8, 16), features=True)
    params, state = model.init(jax.random.key(0), pictures[:2])
    train = jax.jit(lambda state, x: model.apply(params, state, None, x, True))
    before, _ = train(state, pictures[:64])
    for batch in pictures[:480].reshape(6, 80, *pictures.shape[1:]):
        _, state = train(state, batch)
    after, _ = train(state, pictures[:64])
    assert before["stage_2"].std() > 3
    assert 0.8 < after["stage_2"].std() < 1.3


def test_the_forward_pass_of_an_image_does_not_depend_on_the_batch(pictures: jax.Array) -> None:
    model = nfnets_jax.create_model("nf_convnet", 10, width=(8, 16))
    params, state = model.init(jax.random.key(0), pictures[:2])
    train = jax.jit(lambda images: model.apply(params, state, None, images, True)[0]["logits"])
    alone, together = (
        train(pictures[:4]),
        train(pictures[:4] * np.array([1, 3, 0, 9])[:, None, None, None]),
    )
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-5, atol=1e-6)
    assert np.abs(alone[1:] - together[1:]).max() > 0.01


def test_evaluation_averages_mirrored_and_shifted_views() -> None:
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    create = functools.partial(
        nfnets_jax.create_model, "nf_convnet", 10, width=(8, 8), features=True
    )
    model, once = create(mirror=True, shift=True), create()
    params, state = model.init(jax.random.key(0), images)

    def see(images: np.ndarray) -> dict[str, jax.Array]:
        return once.apply(params, state, None, jnp.asarray(images), False)[0]

    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved = [padded[:, place : place + 8, place : place + 8] for place in (1, 0, 2)]
    seen = [[see(image), see(image[:, :, ::-1])] for image in moved]
    all_views, _ = model.apply(params, state, None, images, False)
    for name in ("logits", "pool"):
        each = [(view[name] + mirrored[name]) / 2 for view, mirrored in seen]
        mean = each[0] / 2 + each[1] / 4 + each[2] / 4
        np.testing.assert_allclose(all_views[name], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(all_views["stage_2"], seen[0][0]["stage_2"], atol=1e-5)
    training, _ = model.apply(params, state, None, images, True)
    np.testing.assert_allclose(training["logits"], seen[0][0]["logits"], atol=1e-5)
