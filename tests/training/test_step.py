import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import nfnets_jax
from nfnets_jax import optax_agc
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.mixing import Mixture
from nfnets_jax.data.normalization import normalize
from nfnets_jax.data.pipeline import train_batches
from nfnets_jax.data.resident import ResidentImages, ResidentReader
from nfnets_jax.data.sources import ArraySource, Dataset
from nfnets_jax.devices import fetch, replicate, transfer
from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.registry import Model
from nfnets_jax.training import objective, step
from nfnets_jax.training.recipe import learning_rate_schedule, sgd_in_place
from nfnets_jax.training.sam import SAM
from nfnets_jax.training.units import UNIT_AXES
from tests import golden


def dataset(channels: int, mean: float, std: float) -> Dataset:
    none = ArraySource(np.zeros((0, 8, 8, channels), np.uint8), np.zeros(0))
    return Dataset(none, None, (), channels, (mean,) * channels, (std,) * channels)


GRAY = dataset(1, 0.5, 0.3)


def make_update(
    model: Model,
    optimizer: optax.GradientTransformation,
    devices: list[jax.Device],
    **settings: Any,
) -> Any:
    """Makes an update for small gray images."""
    return step.make_update(
        model,
        optimizer,
        GRAY,
        label_smoothing=0.1,
        ema_decay=0.99,
        devices=devices,
        **settings,
    )


def test_f0_trains_as_published() -> None:
    """Compares six steps: loss, learning rate, norms of gradients, parameters and average."""
    expected = golden.load("train_nfnet_f0.json")
    steps, batch, size = expected["steps"], expected["batch"], expected["image_size"]
    images = golden.generator("train_images").standard_normal(
        (steps, batch, size, size, 3), dtype=np.float32
    )
    labels = golden.generator("train_labels").integers(0, 1000, (steps, batch))
    config = ConfigDict(
        {
            "batch_size": 256,
            "num_steps": expected["schedule_steps"],
            "optimizer": {
                "schedule": "cosine",
                "final_learning_rate": 0.0,
                "base_learning_rate": expected["base_lr"],
                "warmup_fraction": expected["warmup_steps"] / expected["schedule_steps"],
            },
        }
    )
    schedule = learning_rate_schedule(config)
    model = nfnets_jax.create_model("nfnet_f0", dropout_rate=0.0, stochastic_depth_rate=0.0)
    optimizer = optax_agc.sgd_agc(schedule)
    devices = jax.devices()[:1]
    update = step.make_update(
        model,
        optimizer,
        dataset(3, 0.0, 1 / 255),  # The golden images are fed as they are.
        label_smoothing=expected["label_smoothing"],
        ema_decay=expected["ema_decay"],
        devices=devices,
    )
    params = golden.parameters(golden.load("parameter_trees.json")["nfnet_f0"])
    state = step.TrainState(
        np.int32(0), np.zeros(2, np.uint32), params, {}, optimizer.init(params), params
    )
    state = replicate(state, devices)
    norm = jax.jit(optax.tree.norm)
    for index, row in enumerate(expected["trace"]):
        state, metrics = update(state, {"image": images[index][None], "label": labels[index][None]})
        figures = {
            "loss": metrics["loss"][0],
            "grad_norm": metrics["grad_norm"][0],
            "lr": schedule(index),
            "param_norm": norm(state.params),
            "ema_norm": norm(state.ema_params),
        }
        for name, value in figures.items():
            assert float(value) == pytest.approx(row[name], rel=1e-3, abs=1e-9), (index, name)
    for path, norm in expected["final_param_norms"].items():
        module, name = path.rsplit("/", 1)
        value = np.linalg.norm(np.ravel(state.params[module][name]))
        assert value == pytest.approx(norm, rel=1e-5), path


def train(devices: int, micro_batch_size: int = 0, policy: Policy | None = None) -> list[float]:
    """Returns the losses of ten steps of a tiny network with stochastic depth and dropout."""
    model = nfnets_jax.create_model(
        "nfnet_micro",
        10,
        width=(16,),
        depth=(2,),
        strides=(2,),
        stem=((8, 1),),
        group_size=8,
        dropout_rate=0.2,
        stochastic_depth_rate=0.5,
    ).with_policy(policy or Policy())
    optimizer = optax_agc.sgd_agc(0.5, unit_axes=UNIT_AXES)
    rng = np.random.default_rng(0)
    used = jax.devices()[:devices]
    batch = transfer(
        {"image": rng.integers(0, 256, (16, 8, 8, 1), np.uint8), "label": rng.integers(0, 10, 16)},
        used,
    )
    update = make_update(model, optimizer, used, micro_batch_size=micro_batch_size)
    new = step.create_state(model, optimizer, (1, 8, 8, 1), 0)
    state = replicate(model.stacked(new), used)
    losses = []
    for _ in range(10):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"][0]))
    return losses


@pytest.fixture(scope="module")
def losses() -> dict[int, list[float]]:
    """Returns the losses by the number of devices."""
    return {devices: train(devices) for devices in (1, 2, 8)}


def test_a_batch_in_parts_takes_the_same_steps(losses: dict[int, list[float]]) -> None:
    """One device takes four images at a time; each of eight takes its two at once."""
    np.testing.assert_allclose(train(1, 4)[:5], losses[8][:5], atol=1e-4)


@pytest.mark.parametrize("micro_batch_size", [0, 4])
def test_losses_are_the_same_in_the_form_for_a_gpu(
    losses: dict[int, list[float]], micro_batch_size: int
) -> None:
    """Parameters of equal shapes share arrays there, and nothing is rematerialized."""
    actual = train(1, micro_batch_size, Policy(backend="gpu"))
    np.testing.assert_allclose(actual[:5], losses[1][:5], atol=1e-4)


def test_losses_are_the_same_on_any_number_of_devices(losses: dict[int, list[float]]) -> None:
    np.testing.assert_allclose(losses[2], losses[1], atol=1e-4)
    np.testing.assert_allclose(losses[8], losses[1], atol=1e-4)


def test_repeating_a_batch_lowers_its_loss(losses: dict[int, list[float]]) -> None:
    assert losses[1][-1] < losses[1][0] - 0.1


@pytest.mark.parametrize("in_stride", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_step_replaces_large_arrays_in_place(in_stride: bool) -> None:
    model = nfnets_jax.create_model(
        "nfnet_micro", 10, depth=(1,), width=(128,), strides=(1,), group_size=64
    )
    optimizer, devices = sgd_in_place(0.5), jax.devices()[:1]
    update = make_update(model, optimizer, devices)
    state = replicate(step.create_state(model, optimizer, (1, 8, 8, 1), 0), devices)
    images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, int)
    batch: Any = transfer({"image": images, "label": labels}, devices)
    if in_stride:
        batches = train_batches(ArraySource(images, labels), Augmentation(8, "pad"), 2, 0)
        batch = ResidentReader(ResidentImages(batches), devices, 0, 4).take(3)[1]
    large = {param.shape for param in jax.tree.leaves(state.params) if param.size >= 2**14}
    assert large
    program = update.lower(state, batch).compile().as_text()
    copied = re.findall(r" = f32\[([\d,]+)\]\S* copy\(", program)
    assert not large & {tuple(map(int, shape.split(","))) for shape in copied}


def test_evaluation_leaves_masked_examples_out() -> None:
    model = nfnets_jax.create_model("nfnet_micro", 10)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 8, 8, 1), np.uint8)
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    devices = jax.devices()[:2]
    evaluate = step.make_evaluate(model, GRAY, devices=devices)
    replicated = replicate(params, devices)

    def sums(label: list[int], mask: list[float]) -> dict[str, float]:
        batch: Any = {
            "image": image,
            "label": np.array(label),
            "mask": np.asarray(mask, np.float32),
        }
        result = evaluate(replicated, state, transfer(batch, devices))
        return {name: float(value) for name, value in fetch(result).items()}

    whole = sums([1, 2, 3, 4], [1, 1, 1, 1])
    half = sums([1, 2, 9, 9], [1, 1, 0, 0])
    other = sums([9, 9, 3, 4], [0, 0, 1, 1])
    assert (whole["examples"], half["examples"]) == (4, 2)
    assert half["loss"] + other["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert half["top5"] + other["top5"] == whole["top5"]


def test_mixtures_are_asked_for_both_labels_by_their_shares() -> None:
    model = nfnets_jax.create_model(
        "nfnet_micro", 10, depth=(1,), width=(16,), strides=(1,), group_size=8
    )
    optimizer, devices = optax.sgd(0.1), jax.devices()[:2]
    update = make_update(model, optimizer, devices)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, 1), np.uint8)
    own, other = np.array([1, 2, 3, 4]), np.array([5, 6, 7, 8])

    def loss(label: np.ndarray, other_label: np.ndarray, share: list[float]) -> float:
        state = replicate(step.create_state(model, optimizer, (1, 8, 8, 1), 0), devices)
        batch = {
            "image": images,
            "label": label,
            "other_label": other_label,
            "share": np.array(share, np.float32),
        }
        return float(update(state, transfer(batch, devices))[1]["loss"][0])

    first, second = loss(own, other, [1] * 4), loss(other, own, [1] * 4)
    assert first != pytest.approx(second)
    assert loss(own, other, [0.25] * 4) == pytest.approx(0.25 * first + 0.75 * second, rel=1e-5)
    assert loss(own, other, [1, 1, 0, 0]) == pytest.approx(
        loss(np.array([1, 2, 7, 8]), other, [1] * 4), rel=1e-5
    )


@pytest.mark.parametrize(
    ("per_replica", "devices", "micro_batch_size"),
    [pytest.param(False, 2, 0, marks=pytest.mark.slow), (True, 2, 2)],
)
def test_sam_takes_the_gradient_at_the_worst_place_nearby(
    per_replica: bool, devices: int, micro_batch_size: int
) -> None:
    """The first half of the images that ascend together decides where to.

    Published is an ascent of each replica by its own images, on one device of parts of the batch:
    Brock et al. 2021b, arXiv:2102.06171, appendix A.4.
    """
    model = nfnets_jax.create_model(
        "nfnet_micro", 10, depth=(1,), width=(16,), strides=(1,), group_size=8
    )
    used = jax.devices()[:devices]
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 8, 8, 1), np.uint8), rng.integers(0, 10, 8)
    state = step.create_state(model, optax.sgd(0.1), (1, 8, 8, 1), 0)

    @jax.jit
    def gradient(params: Any, chosen: np.ndarray) -> Any:
        def loss(params: Any) -> jax.Array:
            inputs = normalize(jnp.asarray(images)[chosen], GRAY.mean, GRAY.std)
            outputs, _ = model.apply(params, {}, None, inputs, False)
            wanted = jnp.asarray(labels)[chosen]
            return jnp.mean(objective.cross_entropy(outputs["logits"], wanted, 0.1))

        return jax.grad(loss)(params)

    def at_the_worst_place(deciding: list[int], chosen: np.ndarray) -> Any:
        up = gradient(state.params, np.array(deciding))
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(up)))
        above = jax.tree.map(lambda param, grad: param + 0.05 * grad / norm, state.params, up)
        return gradient(above, chosen)

    everything = np.arange(8)
    if per_replica:
        parts = everything.reshape(-1, micro_batch_size or 8 // devices)
        grads = [at_the_worst_place(part[: len(part) // 2].tolist(), part) for part in parts]
        mean = jax.tree.map(lambda *of: sum(of) / len(of), *grads)
    else:
        mean = at_the_worst_place([0, 1, 4, 5], everything)
    expected = jax.tree.map(lambda param, grad: param - 0.1 * grad, state.params, mean)
    sam = SAM(rho=0.05, fraction=0.5, per_replica=per_replica)
    update = make_update(model, optax.sgd(0.1), used, sam=sam, micro_batch_size=micro_batch_size)
    batch = transfer({"image": images, "label": labels}, used)
    after, _ = update(replicate(state, used), batch)
    chex.assert_trees_all_close(fetch(after).params, expected, rtol=1e-5, atol=1e-7)


def test_sam_takes_whole_micro_batches_and_refuses_what_cannot_be() -> None:
    assert [SAM(0.05, 0.2).ascent_examples(of) for of in (1, 5, 64)] == [1, 1, 13]
    assert SAM(0.05, 0.2).ascent_examples(64, 16) == 16
    with pytest.raises(InputError, match="^rho is -1"):
        SAM(-1)
    with pytest.raises(InputError, match="^fraction is 0"):
        SAM(0.05, 0)


@pytest.mark.slow
def test_sam_and_micro_batches_see_the_images_that_the_device_mixed() -> None:
    """The batch of images that are mixed already takes the same step."""
    model = nfnets_jax.create_model(
        "nfnet_micro", 10, depth=(1,), width=(16,), strides=(1,), group_size=8
    )
    devices, rng = jax.devices()[:2], np.random.default_rng(0)
    label, share = rng.integers(0, 10, 8), np.array([0.7, 0.2] * 4, np.float32)
    labels = {"label": label, "other_label": label[::-1], "share": share}
    images = rng.integers(0, 256, (8, 8, 8, 1), np.uint8)
    mixtures = [Mixture(0.7, 0.7), Mixture(0.2, 1, 1, 5, 2, 8)] * 4
    mixing = np.array(mixtures, np.float32)[:, 1:]
    mixed = [mixture.apply(images[i], images[i ^ 1]) for i, mixture in enumerate(mixtures)]
    update = make_update(
        model, optax.sgd(0.1), devices, micro_batch_size=2, sam=SAM(rho=0.05, fraction=0.5)
    )

    def after(batch: Any) -> Any:
        state = step.create_state(model, optax.sgd(0.1), (1, 8, 8, 1), 0)
        return fetch(update(replicate(state, devices), transfer(batch, devices))[0]).params

    left = after({"image": images, "mixing": mixing, **labels})
    done = after({"image": np.stack(mixed), **labels})
    chex.assert_trees_all_close(left, done, atol=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(after({"image": images, **labels}), done, atol=1e-5)
