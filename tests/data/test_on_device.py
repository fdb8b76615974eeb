"""Compares augmentation on the device with the host's and with Pillow's."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from nfnets_jax.data import on_device, pipeline, randaugment
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.decoding import resize
from nfnets_jax.data.mixing import Mixing, Mixture
from tests.data.fake_sources import numbered
from tests.data.test_randaugment import REFERENCES, SIDE, Signed

MAGNITUDES = 3, 5, 10, 15
apply = jax.jit(on_device.randaugment)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    images = (load_sample_image(name) for name in ("china.jpg", "flower.jpg"))
    return [resize(image[:400, :400], SIDE, SIDE) for image in images]


def assert_equal(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """Allows what the host is allowed, see ``test_operations_agree_with_pillow``."""
    assert actual.dtype == expected.dtype == np.uint8
    off = np.abs(actual.astype(int) - expected) > 2
    assert off.mean() <= (0.005 if name == "rotate" else 0)


@pytest.mark.parametrize("name", REFERENCES)
def test_operations_agree_with_the_host_and_with_pillow(
    name: str, photographs: list[np.ndarray]
) -> None:
    operation, choice = randaugment.OPERATIONS[name], randaugment.NAMES.index(name)
    cases = list(itertools.product(photographs, MAGNITUDES, (1, -1)))
    drawn = [
        [randaugment.Drawn(choice, operation.draw(m, Signed(sign), image.shape))]  # type: ignore[arg-type]
        for image, m, sign in cases
    ]
    images = np.stack([image for image, *_ in cases])
    results = np.asarray(apply(images, np.stack([*map(randaugment.as_numbers, drawn)])))
    for (image, m, sign), each, result in zip(cases, drawn, results, strict=True):
        assert_equal(name, result, randaugment.apply(image, each))
        assert_equal(name, result, np.asarray(REFERENCES[name](Image.fromarray(image), sign * m)))


def test_cutout_agrees_with_the_host(photographs: list[np.ndarray]) -> None:
    cutout = randaugment.NAMES.index("cutout")
    places = [(5, 3, 90), (20, 0, 0), (0, 7, 7), (60, 95, 50)]
    drawn = [[randaugment.Drawn(cutout, place)] for place in places] * 4
    results = apply(np.stack(photographs[:1] * 16), np.stack([*map(randaugment.as_numbers, drawn)]))
    for result, each in zip(results, drawn, strict=True):
        np.testing.assert_array_equal(result, randaugment.apply(photographs[0], each))


def test_degenerate_images_agree_with_the_host() -> None:
    """A flat image has no contrast to stretch, and no histogram to equalize."""
    flat, two = np.full((SIDE, SIDE, 3), 7, np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)
    two[0, :3], two[1] = 9, 255
    cases = [
        (image, [randaugment.Drawn(randaugment.NAMES.index(name), parameters)])
        for image in (flat, two)
        for name, parameters in (
            *((name, ()) for name in ("auto_contrast", "equalize", "invert")),
            *((name, (0.3,)) for name in ("color", "contrast", "brightness", "sharpness")),
            ("solarize", (256,)),
        )
    ]
    images = np.stack([image for image, _ in cases])
    results = apply(images, np.stack([randaugment.as_numbers(drawn) for _, drawn in cases]))
    for result, (image, drawn) in zip(results, cases, strict=True):
        np.testing.assert_array_equal(result, randaugment.apply(image, drawn))


def test_two_images_may_become_one_mixture() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
    mixtures = [Mixture(0.3, 0.3), Mixture(0.6, 1, 1, 3, 2, 5), Mixture(1, 1)]
    batch = {"image": images, "mixing": np.array(mixtures, np.float32)[:, 1:]}
    result = jax.jit(on_device.augment)(batch)
    expected = [mixture.apply(*images[2 * i : 2 * i + 2]) for i, mixture in enumerate(mixtures)]
    np.testing.assert_allclose(result["image"].astype(int), np.stack(expected), atol=1)
    assert result.keys() == {"image"}


AUGMENTATION = Augmentation(
    16,
    "pad",
    padding=1,
    flip=True,
    mixing=Mixing(0.2, True),
    randaugment_layers=2,
    randaugment_magnitude=7,
)


@pytest.mark.parametrize("mixtures", [1, 2])
def test_a_batch_is_the_same_by_the_host_and_by_the_device(mixtures: int) -> None:
    """A level that is rounded to the other side of a threshold may then become any other."""
    source, augment = numbered(50, size=16), jax.jit(on_device.augment)
    mixed = dataclasses.replace(AUGMENTATION, mixing=Mixing(0.2, True, mixtures))
    for index in range(3):
        host, device = (
            dict(pipeline.train_batches(source, augmentation, 64, seed=0)[index])
            for augmentation in (mixed, dataclasses.replace(mixed, on_device=True))
        )
        del device["unreadable"]
        result = augment(device)
        for name in ("label", "other_label", "share"):
            np.testing.assert_array_equal(result[name], host[name])
        off = np.abs(np.asarray(result["image"]).astype(int) - host["image"])
        assert (off > 0).mean() < 0.02
        assert (off > 2).mean() < 0.0005
        assert np.any(result["image"] != np.asarray(device["image"])[:: 3 - mixtures])
