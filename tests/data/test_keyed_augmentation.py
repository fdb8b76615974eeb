"""Compares what the device draws with what the host draws from the same distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets_jax.data import keyed_augmentation, randaugment
from nfnets_jax.data.keyed_augmentation import KeyedAugmentation
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.errors import InputError

KEY = jax.random.key(0)


def images(count: int, side: int = 6) -> jax.Array:
    pixels = np.random.default_rng(0).integers(1, 256, (count, side, side, 3))
    return jnp.asarray(pixels, jnp.uint8)


def test_each_image_is_shifted_or_mirrored_as_a_whole() -> None:
    before, labels = images(64), jnp.arange(64)
    batch = KeyedAugmentation(shift=1, flip=True)(KEY, before, labels)
    seen = set()
    for old, new in zip(np.asarray(before), np.asarray(batch["image"]), strict=True):
        padded = np.pad(old, ((1, 1), (1, 1), (0, 0)))
        ways = {
            (row, column, mirrored): padded[row : row + 6, column : column + 6][:, ::mirrored]
            for row in range(3)
            for column in range(3)
            for mirrored in (1, -1)
        }
        (way,) = (way for way, made in ways.items() if np.array_equal(made, new))
        seen.add(way)
    assert len(seen) > 12  # Of 18.
    assert np.array_equal(batch["label"], labels)


def test_nothing_changes_without_augmentation() -> None:
    batch = KeyedAugmentation()(KEY, images(4), jnp.arange(4))
    assert set(batch) == {"image", "label"}
    assert np.array_equal(batch["image"], images(4))


def test_operations_are_drawn_as_on_the_host() -> None:
    drawn = np.asarray(keyed_augmentation.draw_operations(KEY, 4000, 2, 5.0, 224)).reshape(-1, 4)
    rng = np.random.default_rng(0)
    host = randaugment.as_numbers(randaugment.draw(8000, 5.0, (224, 224, 3), rng))
    for number, name in enumerate(randaugment.NAMES):
        own, theirs = (rows[rows[:, 0] == number, 1:] for rows in (drawn, host))
        assert 0.75 < len(own) / len(theirs) < 1.33
        if name == "cutout":
            assert set(own[:, 0]) == set(theirs[:, 0])
            assert np.allclose(own[:, 1:].mean(0), theirs[:, 1:].mean(0), atol=12)
        else:
            assert {*map(tuple, own)} == {*map(tuple, theirs)}


def test_lengths_in_pixels_are_scaled_to_small_images() -> None:
    drawn = np.asarray(keyed_augmentation.draw_operations(KEY, 500, 1, 5.0, 32))[:, 0]
    shifts = drawn[drawn[:, 0] == randaugment.NAMES.index("translate_x"), 1]
    assert set(shifts) == {-7, 7}  # 50 of 224 pixels.


def test_neighbours_are_mixed_by_shares_that_the_host_would_draw() -> None:
    count, side = 4000, 8
    before, labels = images(count, side), jnp.arange(count)
    batch = jax.device_get(KeyedAugmentation(mixup_alpha=0.2)(KEY, before, labels))
    others = labels ^ 1
    assert np.array_equal(batch["other_label"], others)
    old, other = np.asarray(before), np.asarray(before)[others]
    share = batch["share"][:, None, None, None]
    by_cutmix = (np.arange(count) // 2) % 2 == 1

    blend = share * old + (1 - share) * other
    assert np.abs(batch["image"] - blend)[~by_cutmix].max() < 0.51
    is_own = (batch["image"] == old).all(-1)
    assert (is_own | (batch["image"] == other).all(-1))[by_cutmix].all()
    assert np.allclose(is_own.mean((1, 2))[by_cutmix], batch["share"][by_cutmix], atol=1e-5)

    rng = np.random.default_rng(0)
    host = Mixing(0.2, cutmix=True)
    drawn = np.array([host.draw((side, side, 3), n // 2, rng).share for n in range(count)])
    for way in (by_cutmix, ~by_cutmix):
        assert batch["share"][way].mean() == pytest.approx(drawn[way].mean(), abs=0.03)
        assert batch["share"][way].std() == pytest.approx(drawn[way].std(), abs=0.02)


def test_an_odd_batch_is_not_mixed() -> None:
    with pytest.raises(InputError, match="a batch of 3 images is odd: it is mixed in pairs"):
        KeyedAugmentation(mixup_alpha=0.2)(KEY, images(3), jnp.arange(3))
