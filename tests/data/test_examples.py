import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from nfnets_jax.data.examples import Augmentation, CenterCrop, EvalExamples, TrainExamples
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.sources import ArraySource, Record
from nfnets_jax.errors import InputError

PAD = Augmentation(size=8, crop="pad", padding=2, flip=True)


def numbered(length: int, size: int = 8) -> ArraySource:
    """Records whose label is their position."""
    images = np.random.default_rng(0).integers(1, 256, (length, size, size, 3), np.uint8)
    return ArraySource(images, np.arange(length))


class Files:
    """Files of which some are damaged; each image is as bright as its label says."""

    def __init__(self, length: int, damaged: set[int]):
        self._length, self._damaged = length, damaged

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        buffer = io.BytesIO()
        Image.new("RGB", (10, 9), (index, index, index)).save(buffer, "PNG")
        content = buffer.getvalue()
        if index in self._damaged:
            content = content[:40]
        return Record(image=content, label=index, name=f"file {index}")


def load(examples: TrainExamples, start: int, length: int) -> dict[str, np.ndarray]:
    return examples.load(np.arange(start, start + length))  # type: ignore[return-value]


def test_an_epoch_holds_every_record_once_and_no_two_are_alike() -> None:
    examples = TrainExamples(numbered(30), PAD, seed=0)
    # Read across the ends of epochs.
    labels = np.concatenate([load(examples, start, 9)["label"] for start in range(0, 90, 9)])
    epochs = labels.reshape(3, 30)
    for epoch in epochs:
        assert sorted(epoch) == list(range(30))
    assert list(epochs[0]) != list(epochs[1]) != list(range(30))


@pytest.mark.parametrize("crop", ["inception", "pad"])
@pytest.mark.parametrize("size", [8, 6])
def test_an_example_depends_on_the_seed_and_its_place_alone(crop: str, size: int) -> None:
    augmentation = Augmentation(
        size, crop, padding=1, flip=True, mixing=Mixing(0.2, True), layers=2, magnitude=5
    )
    examples = TrainExamples(numbered(20), augmentation, seed=3)
    whole = load(examples, 0, 16)
    for start, length in ((0, 2), (6, 4), (10, 6)):
        part = load(examples, start, length)
        for name, array in part.items():
            if name != "unreadable":
                np.testing.assert_array_equal(array, whole[name][start : start + length])
    other = load(TrainExamples(numbered(20), augmentation, seed=4), 0, 16)
    assert np.any(other["image"] != whole["image"])


def test_images_in_memory_are_cropped_as_files_are() -> None:
    """Reading all at once is for speed alone."""

    class OneByOne:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Record:
            return numbered(20)[index]

    for crop in ("inception", "pad"):
        augmentation = Augmentation(8, crop, padding=1, flip=True)
        together = load(TrainExamples(numbered(20), augmentation, 0), 0, 30)
        singly = load(TrainExamples(OneByOne(), augmentation, 0), 0, 30)
        for name, array in together.items():
            np.testing.assert_array_equal(array, singly[name])
        whole = np.sort(numbered(20).images.reshape(20, -1).sum(axis=1, dtype=int))
        cut = together["image"].reshape(30, -1).sum(axis=1, dtype=int)
        assert not set(cut) <= set(whole)


def test_records_are_transformed_anew_every_epoch() -> None:
    examples = TrainExamples(numbered(8), PAD, seed=0)
    epochs = [load(examples, start, 8) for start in (0, 8)]
    first, second = (batch["image"][np.argsort(batch["label"])] for batch in epochs)
    assert np.any(first != second)


def test_images_are_mirrored_in_every_other_epoch() -> None:
    alternating = dataclasses.replace(PAD, padding=0, alternate=True)
    source = numbered(40)
    examples = TrainExamples(source, alternating, seed=0)
    mirrored = np.empty((4, 40), bool)
    for place in range(0, 160, 8):
        batch = load(examples, place, 8)
        for index, (image, label) in enumerate(zip(batch["image"], batch["label"], strict=True)):
            as_it_is = np.array_equal(image, source.images[label])
            assert as_it_is or np.array_equal(image, source.images[label][:, ::-1])
            mirrored[(place + index) // 40, label] = not as_it_is
    assert 10 < mirrored[0].sum() < 30
    for epoch in range(1, 4):
        assert (mirrored[epoch] != mirrored[epoch - 1]).all()


def test_half_of_the_images_are_flipped_and_shifts_are_even() -> None:
    source = ArraySource(numbered(1).images, np.array([7]))
    images = load(TrainExamples(source, PAD, seed=0), 0, 2000)["image"]
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
    """Images of one level each, so that the mixture's mean tells the share."""
    levels = np.repeat(np.arange(40, dtype=np.uint8) * 5, 8 * 8 * 3).reshape(40, 8, 8, 3)
    source = ArraySource(levels, np.arange(40))
    plain = Augmentation(size=8, crop="pad")
    unmixed = load(TrainExamples(source, plain, seed=0), 0, 40)
    np.testing.assert_array_equal(unmixed["other_label"], unmixed["label"])
    np.testing.assert_array_equal(unmixed["share"], 1)

    mixing = Augmentation(size=8, crop="pad", mixing=Mixing(0.2, True))
    mixed = load(TrainExamples(source, mixing, seed=0), 0, 40)
    np.testing.assert_array_equal(mixed["label"], unmixed["label"])
    pairs = mixed["label"].reshape(-1, 2)
    np.testing.assert_array_equal(mixed["other_label"].reshape(-1, 2), pairs[:, ::-1])
    expected = 5 * (mixed["share"] * mixed["label"] + (1 - mixed["share"]) * mixed["other_label"])
    np.testing.assert_allclose(mixed["image"].mean(axis=(1, 2, 3)), expected, atol=0.6)
    by_mixup = mixed["image"].reshape(40, -1).std(axis=1) == 0
    assert by_mixup.reshape(-1, 2)[::2].all()
    assert not by_mixup.reshape(-1, 2)[1::2].all()


def test_the_next_readable_record_takes_the_place_of_a_damaged_one() -> None:
    damaged = {3, 4, 11}
    examples = TrainExamples(Files(12, damaged), Augmentation(8, "pad"), seed=0)
    whole, batch = TrainExamples(Files(12, set()), Augmentation(8, "pad"), seed=0), None
    batch, expected = load(examples, 0, 12), load(whole, 0, 12)["label"]
    replaced = {3: 5, 4: 5, 11: 0}
    assert list(batch["label"]) == [replaced.get(label, label) for label in expected]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    assert {name.split(":")[0] for name in batch["unreadable"]} == {"file 3", "file 4", "file 11"}


def test_only_damaged_records_end_the_search() -> None:
    examples = TrainExamples(Files(200, set(range(200))), Augmentation(8, "pad"), seed=0)
    with pytest.raises(InputError, match="100 images in a row cannot be read, the last: file"):
        load(examples, 0, 4)


def test_evaluation_masks_what_cannot_be_read_and_what_fills_up() -> None:
    examples = EvalExamples(Files(6, {2}), CenterCrop(8), channels=3)
    batch = examples.load(np.arange(8))
    assert list(batch["mask"]) == [1, 1, 0, 1, 1, 1, 0, 0]
    assert list(batch["label"]) == [0, 1, 0, 3, 4, 5, 0, 0]
    np.testing.assert_array_equal(batch["image"][:, 4, 4, 1], batch["label"])
    assert [name.split(":")[0] for name in batch["unreadable"]] == ["file 2"]


def test_wrong_settings_name_the_right_ones() -> None:
    with pytest.raises(InputError, match="no crop 'centre'; data.crop is one of inception, pad"):
        Augmentation(8, "centre")
    with pytest.raises(InputError, match="no crop 'x'; data.test_crop is one of resize, padded"):
        CenterCrop(8, 0, "x")
    with pytest.raises(InputError, match="layers and a magnitude from 0 on, not -1 and 5"):
        Augmentation(8, layers=-1, magnitude=5)
