import numpy as np

from experiments.detection.objects import boxes_of
from experiments.detection.scenes import draw_scene, open_scenes
from nfnets_jax.data.sources import Source, open_dataset


def pixels(source: Source, index: int) -> np.ndarray:
    image = source[index]["image"]
    assert isinstance(image, np.ndarray)
    return image


def test_a_scene_depends_on_seed_split_and_position_alone() -> None:
    first, again = open_scenes(5, 48), open_scenes(3, 48)
    for index in (2, 0):
        np.testing.assert_array_equal(pixels(first.train, index), pixels(again.train, index))
        here, there = (each.train[index]["label"].masks for each in (first, again))
        np.testing.assert_array_equal(here, there)
    assert first.test is not None
    others = pixels(first.test, 0), pixels(first.train, 1), pixels(open_scenes(5, 48, 1).train, 0)
    assert not any(np.array_equal(other, pixels(first.train, 0)) for other in others)


def test_masks_are_where_the_digits_were_drawn() -> None:
    """Digits change what they cover and little else; boxes are around what is visible."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image, objects = draw_scene(64, "train", rng)
        assert objects.masks is not None
        assert 1 <= len(objects.boxes) == len(objects.classes) <= 6
        assert objects.masks.sum(0).max() == 1  # What is hidden is of no mask.
        np.testing.assert_array_equal(objects.boxes, boxes_of(objects.masks))
        inside = image[objects.masks.any(0)].astype(float)
        assert inside.std() > 0


def test_train_and_test_have_no_digit_in_common() -> None:
    """The splits are those of the dataset of digits, which this one shows."""
    digits = open_dataset("digits")
    assert open_scenes(1, 32).class_names == digits.class_names
    train = {image.tobytes() for image in digits.train.images}  # type: ignore[attr-defined]
    test = {image.tobytes() for image in digits.test.images}  # type: ignore[union-attr]
    assert not train & test
