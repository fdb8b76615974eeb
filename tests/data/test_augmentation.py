import dataclasses

import numpy as np
import pytest

from nfnets_jax.data import pipeline
from nfnets_jax.data.augmentation import Augmentation, Augmented
from nfnets_jax.data.batch_context import BatchContext, Stream
from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.randaugment import randaugment
from nfnets_jax.data.sources import ArraySource
from nfnets_jax.errors import InputError
from tests.data.fake_sources import numbered


def batch(source: ArraySource, augmentation: Augmentation, length: int) -> dict[str, np.ndarray]:
    return pipeline.train_batches(source, augmentation, length, seed=0)[0]  # type: ignore[return-value]


def test_half_of_the_images_are_flipped_and_shifts_are_uniform() -> None:
    source = ArraySource(numbered(1).images, np.array([7]))
    augmentation = Augmentation(8, "pad", padding=2, flip=True)
    images = batch(source, augmentation, 2000)["image"]
    padded = np.pad(source.images[0], ((2, 2), (2, 2), (0, 0)))
    found = np.zeros((2, 5, 5), int)
    for flip in range(2):
        for top in range(5):
            for left in range(5):
                part = padded[top : top + 8, left : left + 8]
                part = part[:, ::-1] if flip else part
                found[flip, top, left] = np.sum(np.all(images == part, axis=(1, 2, 3)))
    assert found.sum() == 2000
    assert found[1].sum() == pytest.approx(1000, abs=100)
    assert found.min() > 15


def test_mixed_images_carry_both_labels_and_the_share() -> None:
    """Each image has one gray level, so that a mixture's mean shows the share."""
    levels = np.repeat(np.arange(40, dtype=np.uint8) * 5, 8 * 8 * 3).reshape(40, 8, 8, 3)
    source = ArraySource(levels, np.arange(40))
    unmixed = batch(source, Augmentation(8, "pad"), 40)
    np.testing.assert_array_equal(unmixed["other_label"], unmixed["label"])
    np.testing.assert_array_equal(unmixed["share"], 1)

    mixing = Mixing(0.2, True, mixtures_per_pair=2)
    mixed = batch(source, Augmentation(8, "pad", mixing=mixing), 40)
    np.testing.assert_array_equal(mixed["label"], unmixed["label"])
    pairs = mixed["label"].reshape(-1, 2)
    np.testing.assert_array_equal(mixed["other_label"].reshape(-1, 2), pairs[:, ::-1])
    by_mixup = check_shares(mixed)
    assert by_mixup.reshape(-1, 2)[::2].all()
    assert not by_mixup.reshape(-1, 2)[1::2].all()


def check_shares(mixed: dict[str, np.ndarray]) -> np.ndarray:
    """Compares each mixture's mean with its labels; returns which have one level, by MixUp."""
    images, share = mixed["image"], mixed["share"]
    expected = 5 * (share * mixed["label"] + (1 - share) * mixed["other_label"])
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), expected, atol=0.6)
    return images.reshape(len(images), -1).std(axis=1) == 0


def test_no_image_is_in_two_mixtures() -> None:
    """A batch is made of twice as many images, half of them by MixUp, the others by CutMix.

    So does the authors' code: deepmind-research, nfnets/dataset.py, ``my_mixup_cutmix``.
    """
    levels = np.repeat(np.arange(40, dtype=np.uint8) * 5, 8 * 8 * 3).reshape(40, 8, 8, 3)
    source = ArraySource(levels, np.arange(40))
    augmentation = Augmentation(8, "pad", mixing=Mixing(0.2, True))
    mixed = batch(source, augmentation, 20)
    assert mixed["image"].shape == (20, 8, 8, 3)
    labels = np.concatenate([mixed["label"], mixed["other_label"]])
    assert sorted(labels) == list(range(40))
    by_mixup = check_shares(mixed)
    assert by_mixup[::2].all()
    assert not by_mixup[1::2].all()


def test_randaugment_comes_after_mixing() -> None:
    source = numbered(40)
    mixing = Augmentation(8, "pad", mixing=Mixing(0.2))
    mixed = batch(source, mixing, 40)["image"]
    both = dataclasses.replace(mixing, randaugment_layers=1, randaugment_magnitude=10)
    context = BatchContext(0, np.arange(80), np.arange(80) % 40, 40)
    expected = [
        randaugment(image, 1, 10, context.rng(2 * i, Stream.RANDAUGMENT))
        for i, image in enumerate(mixed)
    ]
    np.testing.assert_array_equal(batch(source, both, 40)["image"], expected)
    assert np.any(np.stack(expected) != mixed)


@dataclasses.dataclass(frozen=True)
class Average:
    """A transform of its own: the mean of three neighbours, and the epoch in a pixel."""

    size: int = 8
    images_per_example: int = 1
    group_size: int = 3
    random_crop: bool = True

    def decode(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        return picture.pixels()[1:9, 1:9]

    def augment(self, images: np.ndarray, batch: BatchContext) -> Augmented:
        groups = images.reshape(-1, 3, *images.shape[1:])
        means = np.repeat(groups.mean(axis=1).astype(np.uint8), 3, axis=0)
        means[:, 0, 0, 0] = batch.epochs
        partners = np.arange(len(images)) // 3 * 3
        return Augmented(means, partners, np.full(len(images), 1 / 3, np.float32))


def test_any_object_with_the_members_of_the_protocol_is_a_transform() -> None:
    source = numbered(9, size=9)
    batches = pipeline.train_batches(source, Average(), 6, seed=0)
    for index in range(3):
        labels, images = batches[index]["label"], batches[index]["image"]
        for first in (0, 3):
            group = labels[first : first + 3]
            expected = source.images[group, 1:, 1:].mean(axis=0).astype(np.uint8)
            expected[0, 0, 0] = (6 * index + first) // 9
            np.testing.assert_array_equal(images[first + 1], expected)
            assert list(batches[index]["other_label"][first : first + 3]) == [group[0]] * 3  # type: ignore[typeddict-item]
    with pytest.raises(InputError, match="batch_size 8 .* in groups of 3 images; take a multiple"):
        pipeline.train_batches(source, Average(), 8, seed=0)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="no crop 'centre' for training; there are distorted, "):
        Augmentation(8, "centre")
    with pytest.raises(InputError, match="layers and a magnitude from 0 on, not -1 and 5"):
        Augmentation(8, randaugment_layers=-1, randaugment_magnitude=5)
