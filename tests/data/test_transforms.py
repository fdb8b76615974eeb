import numpy as np
import pytest

from nfnets_jax.data import transforms
from nfnets_jax.data.decoding import Picture
from nfnets_jax.errors import InputError


def gradient(height: int, width: int) -> np.ndarray:
    """An image whose first channel is the row, whose second the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)


def picture(image: np.ndarray) -> Picture:
    return Picture(image, "it")


def test_inception_crops_have_the_published_areas_and_ratios() -> None:
    image, areas, ratios = picture(gradient(200, 240)), [], []
    for seed in range(400):
        crop = transforms.inception_crop(image, 64, np.random.default_rng(seed)).astype(float)
        assert crop.shape == (64, 64, 3)
        # The slope of the gradient shows the height and the width of the part.
        height = (crop[48, :, 0].mean() - crop[16, :, 0].mean()) * 2
        width = (crop[:, 48, 1].mean() - crop[:, 16, 1].mean()) * 2
        areas.append(height * width / (200 * 240))
        ratios.append(width / height)
    assert 0.05 < min(areas) < 0.15
    assert 0.85 < max(areas) < 1.05
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)
    assert 0.7 < min(ratios) < 0.78 < 1.25 < max(ratios) < 1.4


def test_the_inception_crop_of_an_image_that_none_fits_is_its_center() -> None:
    crop = transforms.inception_crop(picture(gradient(4, 200)), 4, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, gradient(4, 200)[:, 98:102])


def test_a_shift_uncovers_black() -> None:
    image = gradient(5, 6) + 1
    offsets = np.array([[0, 0], [2, 0], [-1, 3], [0, -2], [1, 1]])
    moved = transforms.shift(np.stack([image] * 5), offsets)
    for result, (down, right) in zip(moved, offsets, strict=True):
        for row in range(5):
            for column in range(6):
                inside = 0 <= row - down < 5 and 0 <= column - right < 6
                expected = image[row - down, column - right] if inside else 0
                np.testing.assert_array_equal(result[row, column], expected)


def test_a_reflecting_shift_uncovers_the_mirrored_image() -> None:
    image = np.arange(6 * 7).reshape(6, 7, 1).astype(np.uint8)
    moved = transforms.shift(np.stack([image] * 2), np.array([[2, -1], [0, 0]]), reflect=True)
    np.testing.assert_array_equal(moved[0], image[[2, 1, 0, 1, 2, 3]][:, [1, 2, 3, 4, 5, 6, 5]])
    np.testing.assert_array_equal(moved[1], image)


@pytest.mark.parametrize("channels", [1, 3])
def test_only_the_chosen_images_are_flipped(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, channels), np.uint8)
    flipped = images.copy()
    transforms.flip(flipped, np.array([True, False, False, True]))
    np.testing.assert_array_equal(flipped[1:3], images[1:3])
    np.testing.assert_array_equal(flipped[[0, 3]], images[[0, 3], :, ::-1])


@pytest.mark.parametrize("crop", transforms.EVAL_CROPS)
def test_evaluation_crops_the_margin_evenly(crop: str) -> None:
    image = gradient(40, 60)
    np.testing.assert_array_equal(transforms.eval_crop(image, 32, 8, crop), image[4:36, 14:46])
    assert transforms.eval_crop(image, 64, 16, crop).shape == (64, 64, 3)
    assert transforms.eval_crop(image[..., :1], 20, 0, crop).shape == (20, 20, 1)


def test_both_crops_for_evaluation_show_the_same_part() -> None:
    image = gradient(160, 200)
    resized, padded = (transforms.eval_crop(image, 64, 16, crop) for crop in transforms.EVAL_CROPS)
    assert resized.shape == padded.shape == (64, 64, 3)
    np.testing.assert_allclose(resized.astype(int), padded, atol=1)


@pytest.mark.parametrize("crop", transforms.EVAL_CROPS)
def test_a_center_crop_of_a_picture_is_the_crop_of_its_pixels(crop: str) -> None:
    image = gradient(50, 70)
    np.testing.assert_array_equal(
        transforms.CenterCrop(32, 8, crop)(picture(image)),
        transforms.eval_crop(image, 32, 8, crop),
    )


def test_an_unknown_crop_for_evaluation_is_refused() -> None:
    for make in (
        lambda: transforms.CenterCrop(8, 0, "x"),
        lambda: transforms.eval_crop(gradient(9, 9), 8, crop="x"),
    ):
        with pytest.raises(InputError, match="no crop 'x' for evaluation; there are resize, pad"):
            make()
