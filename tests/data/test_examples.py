import io
from typing import Any

import numpy as np
import PIL.Image
import pytest

from nfnets_jax.data import decoding
from nfnets_jax.data.augmentation import CROPS, Augmentation
from nfnets_jax.data.examples import EvalExamples, TrainExamples
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.sources import Record
from nfnets_jax.data.transforms import CenterCrop
from nfnets_jax.errors import InputError
from tests.data.fake_sources import Files, numbered

WHOLE = Augmentation(8, "pad")
SHIFT_AND_FLIP = Augmentation(8, "pad", padding=2, flip=True)


def load(examples: TrainExamples, start: int, length: int) -> dict[str, np.ndarray]:
    return examples.load(np.arange(start, start + length))  # type: ignore[return-value]


def test_each_epoch_holds_every_record_once_in_another_order() -> None:
    examples = TrainExamples(numbered(30), WHOLE, seed=0)
    # Chunks of 9 cross the ends of the epochs.
    labels = np.concatenate([load(examples, start, 9)["label"] for start in range(0, 90, 9)])
    epochs = labels.reshape(3, 30)
    for epoch in epochs:
        assert sorted(epoch) == list(range(30))
    assert list(epochs[0]) != list(epochs[1]) != list(range(30))


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(("size", "mixtures", "repeats"), [(8, 1, 1), (6, 2, 1), (8, 2, 3)])
def test_an_example_depends_on_the_seed_and_its_index_alone(
    crop: str, size: int, mixtures: int, repeats: int
) -> None:
    augmentation = Augmentation(
        size,
        crop,
        padding=1,
        flip=True,
        mixing=Mixing(0.2, True, mixtures),
        randaugment_layers=2,
        randaugment_magnitude=5,
    )
    examples = TrainExamples(numbered(20), augmentation, seed=3, repeats=repeats)
    whole = load(examples, 0, 30)
    group = examples.group_size
    for start, length in ((0, group), (3 * group, 2 * group), (2 * group, 3 * group)):
        part = load(examples, start, length)
        for name, array in part.items():
            if name != "unreadable":
                np.testing.assert_array_equal(array, whole[name][start : start + length])
    other = load(TrainExamples(numbered(20), augmentation, seed=4), 0, 30)
    assert np.any(other["image"] != whole["image"])


@pytest.mark.parametrize("crop", CROPS)
def test_reading_images_in_memory_together_changes_nothing(crop: str) -> None:
    class OneByOne:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Record:
            return numbered(20)[index]

    augmentation = Augmentation(8, crop, padding=1, flip=True)
    together = load(TrainExamples(numbered(20), augmentation, 0), 0, 30)
    singly = load(TrainExamples(OneByOne(), augmentation, 0), 0, 30)
    for name, array in together.items():
        np.testing.assert_array_equal(array, singly[name])
    uncropped = set(numbered(20).images.reshape(20, -1).sum(axis=1, dtype=int))
    cropped = set(together["image"].reshape(30, -1).sum(axis=1, dtype=int))
    assert not cropped <= uncropped


def test_each_epoch_augments_a_record_differently() -> None:
    examples = TrainExamples(numbered(8), SHIFT_AND_FLIP, seed=0)
    epochs = [load(examples, start, 8) for start in (0, 8)]
    first, second = (batch["image"][np.argsort(batch["label"])] for batch in epochs)
    assert np.any(first != second)


@pytest.mark.parametrize("mixing", [Mixing(), Mixing(20), Mixing(20, mixtures_per_pair=2)])
def test_repeated_images_are_augmented_differently(mixing: Mixing) -> None:
    """Each record is in every batch ``repeats`` times or not at all, and never twice in a mixture.

    Smith et al. 2023, arXiv:2310.16764, fine-tune NFNets with four repetitions.
    """
    augmentation = Augmentation(8, "distorted", mixing=mixing)
    examples = TrainExamples(numbered(20, size=40), augmentation, seed=0, repeats=4)
    count = 20 * 4 // augmentation.images_per_example
    counts = np.zeros(20, int)
    for start in range(0, count, 8):
        batch = load(examples, start, 8)
        labels = [batch["label"]]
        if mixing:
            assert np.all(batch["label"] != batch["other_label"])
            if augmentation.images_per_example == 2:
                labels.append(batch["other_label"])
        found = np.bincount(np.concatenate(labels), minlength=20)
        assert set(found) == {0, 4}
        counts += found
        assert len({image.tobytes() for image in batch["image"]}) == 8
    assert set(counts) == {4}


def test_a_repeated_photograph_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = io.BytesIO()
    PIL.Image.fromarray(numbered(1, size=12).images[0]).save(jpeg, "JPEG")
    decoded = []
    decode = decoding.simplejpeg.decode_jpeg

    def counted(jpeg: bytes, **options: Any) -> np.ndarray:
        decoded.append(jpeg)
        return decode(jpeg, **options)

    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", counted)
    source = [Record(image=jpeg.getvalue(), label=label, name="it") for label in range(6)]
    for repeats, times in ((1, 12), (4, 3)):
        decoded.clear()
        load(TrainExamples(source, Augmentation(8), seed=0, repeats=repeats), 0, 12)
        assert len(decoded) == times


def test_the_next_readable_record_replaces_a_damaged_one() -> None:
    damaged = {3, 4, 11}
    batch = load(TrainExamples(Files(12, damaged), WHOLE, seed=0), 0, 12)
    undamaged = load(TrainExamples(Files(12, set()), WHOLE, seed=0), 0, 12)["label"]
    replacements = {3: 5, 4: 5, 11: 0}
    assert list(batch["label"]) == [replacements.get(label, label) for label in undamaged]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    names = {message.split(":")[0] for message in batch["unreadable"]}
    assert names == {"file 3", "file 4", "file 11"}


def test_a_hundred_damaged_records_in_a_row_are_an_error() -> None:
    examples = TrainExamples(Files(200, set(range(200))), WHOLE, seed=0)
    with pytest.raises(InputError, match="100 images in a row cannot be read, the last: file"):
        load(examples, 0, 4)


def test_evaluation_masks_damaged_records_and_the_rest_of_the_last_batch() -> None:
    examples = EvalExamples(Files(6, {2}), CenterCrop(8), channels=3)
    batch = examples.load(np.arange(8))
    assert list(batch["mask"]) == [1, 1, 0, 1, 1, 1, 0, 0]
    assert list(batch["label"]) == [0, 1, 0, 3, 4, 5, 0, 0]
    np.testing.assert_array_equal(batch["image"][:, 4, 4, 1], batch["label"])
    assert [message.split(":")[0] for message in batch["unreadable"]] == ["file 2"]
