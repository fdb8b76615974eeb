import dataclasses
import math
from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest

import nfnets_jax
from experiments import population
from experiments.pure_run import Run, Task
from nfnets_jax.data.keyed_augmentation import KeyedAugmentation
from nfnets_jax.data.sources import ArraySource, Dataset
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model, ModuleConfig

CLASSES, SIDE = 3, 4


class Regression(hk.Module):
    """Softmax regression on pixels; from zero, so that nothing of it is random."""

    def __init__(self, num_classes: int):
        super().__init__("regression")
        self._layer = hk.Linear(num_classes, w_init=np.zeros, name="layer")  # type: ignore[arg-type]

    def __call__(
        self, images: jax.Array, keys: Any, is_training: bool, features: bool
    ) -> dict[str, jax.Array]:
        del keys, is_training, features
        return {"logits": self._layer(images.reshape(len(images), -1)), "pool": images}


def dataset(count: int = 24) -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=count)
    noise = rng.integers(150, size=(count, SIDE, SIDE, 1))
    images = (noise + 35 * labels[:, None, None, None]).astype(np.uint8)
    source = ArraySource(images, labels)
    return Dataset(source, source, tuple("abc"), 1, (0.5,), (0.25,))


def task(**changes: Any) -> Task:
    model = Model("regression", CLASSES, ModuleConfig(Regression, SIDE, SIDE))
    return dataclasses.replace(Task(model, batch_size=24, steps=5, decays=False), **changes)


def by_hand(run: Run, steps: int) -> list[float]:
    """Returns the losses of gradient descent on all images, written out in NumPy."""
    data = dataset()
    assert isinstance(data.train, ArraySource)
    x = ((data.train.images / 255 - 0.5) / 0.25).reshape(len(data.train), -1)
    targets = np.eye(CLASSES)[data.train.labels]
    w, b = np.zeros((x.shape[1], CLASSES)), np.zeros(CLASSES)
    momenta = [np.zeros_like(w), np.zeros_like(b)]
    losses = []
    for _ in range(steps):
        logits = x @ w + b
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.mean(np.log(p[targets == 1])))
        grads = [x.T @ (p - targets) / len(x), np.mean(p - targets, 0)]
        for index, weight in enumerate((w, b)):
            axis = 0
            grad, norms = grads[index], np.linalg.norm(grads[index], axis=axis)
            if run.clipping:
                longest = run.clipping * np.maximum(np.linalg.norm(weight, axis=axis), 1e-3)
                grad = grad * np.minimum(1, longest / norms)
            if index == 0:
                grad = grad + run.weight_decay * weight
            momenta[index] = run.momentum * momenta[index] + grad
            weight -= run.learning_rate * (grad + run.momentum * momenta[index])
    return losses


RUNS = [
    Run(0, 0.1),
    Run(1, 0.2, clipping=0.5),
    Run(2, 0.05, weight_decay=0.3, momentum=0.5),
]


def test_a_population_takes_the_steps_that_are_written_out() -> None:
    outcomes = population.train(task(), dataset(), RUNS, jax.devices()[:1])
    for run, outcome in zip(RUNS, outcomes, strict=True):
        np.testing.assert_allclose(outcome.losses, by_hand(run, 5), rtol=2e-5)
        assert outcome.diverged_at is None
        assert 0.4 < outcome.top1 <= 1


def test_rmsprop_takes_the_steps_that_are_written_out() -> None:
    """Trains a regression; the decays are Tan and Le's (2021, arXiv:2104.00298, section 5.1)."""
    run = Run(0, 0.01, weight_decay=0.0)
    (outcome,) = population.train(task(rmsprop=True, steps=3), dataset(), [run], jax.devices()[:1])
    np.testing.assert_allclose(outcome.losses, rmsprop_by_hand(run, 3), rtol=2e-5)


def rmsprop_by_hand(run: Run, steps: int) -> list[float]:
    data = dataset()
    assert isinstance(data.train, ArraySource)
    x = ((data.train.images / 255 - 0.5) / 0.25).reshape(len(data.train), -1)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    targets = np.eye(CLASSES)[data.train.labels]
    w = np.zeros((x.shape[1], CLASSES))
    squares, momentum, losses = np.ones_like(w), np.zeros_like(w), []
    for _ in range(steps):
        p = np.exp(x @ w) / np.exp(x @ w).sum(1, keepdims=True)
        losses.append(-np.mean(np.log(p[targets == 1])))
        grad = x.T @ (p - targets) / len(x)
        squares = 0.9 * squares + 0.1 * grad**2
        momentum = run.momentum * momentum + grad / np.sqrt(squares + 1e-3)
        w -= run.learning_rate * momentum
    return losses


def test_a_run_alone_is_the_same_within_a_population() -> None:
    augmented = task(
        batch_size=10,
        warmup_steps=2,
        decays=True,
        augmentation=KeyedAugmentation(shift=1, flip=True),
    )
    together = population.train(augmented, dataset(), RUNS, jax.devices()[:1])
    (alone,) = population.train(augmented, dataset(), RUNS[1:2], jax.devices()[:1])
    np.testing.assert_allclose(alone.losses, together[1].losses, rtol=1e-5)
    assert alone.top1 == pytest.approx(together[1].top1)
    assert not np.allclose(together[0].losses[1:], alone.losses[1:], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nfnet_tiny", "nfnet_tiny_bn"])
def test_convolutions_agree_too(name: str) -> None:
    shape: dict[str, Any] = {"width": (8,), "depth": (2,), "strides": (1,), "stem": ((8, 1),)}
    model = nfnets_jax.create_model(name, CLASSES, group_size=4, **shape)
    narrow = task(model=model, batch_size=12)
    together = population.train(narrow, dataset(), RUNS, jax.devices()[:1])
    (alone,) = population.train(narrow, dataset(), RUNS[1:2], jax.devices()[:1])
    np.testing.assert_allclose(alone.losses, together[1].losses, rtol=1e-4)


def test_a_run_that_diverges_is_reported_and_leaves_the_others_alone() -> None:
    lost, fine = population.train(task(), dataset(), [Run(0, 1e38), Run(0, 0.1)], jax.devices()[:1])
    assert lost.diverged_at in (1, 2)
    assert math.isnan(lost.top1)
    assert np.isnan(lost.losses[lost.diverged_at :]).all()
    np.testing.assert_allclose(fine.losses, by_hand(Run(0, 0.1), 5), rtol=2e-5)


def test_the_last_epoch_may_be_shorter() -> None:
    (outcome,) = population.train(task(batch_size=12, steps=3), dataset(), RUNS[:1])
    assert outcome.losses.shape == (3,)
    assert np.isfinite(outcome.losses).all()


def test_the_schedule_rises_and_falls() -> None:
    cosine = task(steps=12, warmup_steps=4, decays=True)
    rates = [float(cosine.schedule(step)) for step in (0, 2, 4, 8, 12)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="a batch of 48 images from 24: use a smaller batch"):
        population.train(task(batch_size=48), dataset(), RUNS)
