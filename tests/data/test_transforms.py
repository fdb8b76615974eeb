import numpy as np
import pytest

from nfnets_jax.data import transforms
from nfnets_jax.data.decoding import Picture


def gradient(height: int, width: int) -> np.ndarray:
    """An image whose first channel is the row, whose second the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)


def picture(image: np.ndarray) -> Picture:
    return Picture(image, "it")


def test_inception_crops_cover_the_declared_shares_and_shapes() -> None:
    image, areas, ratios = picture(gradient(200, 240)), [], []
    for seed in range(400):
        crop = transforms.inception_crop(image, 64, np.random.default_rng(seed)).astype(float)
        assert crop.shape == (64, 64, 3)
        # The gradient's steepness tells how much of the image each way was taken.
        height = (crop[48, :, 0].mean() - crop[16, :, 0].mean()) * 2
        width = (crop[:, 48, 1].mean() - crop[:, 16, 1].mean()) * 2
        areas.append(height * width / (200 * 240))
        ratios.append(width / height)
    assert 0.05 < min(areas) < 0.15
    assert 0.85 < max(areas) < 1.05
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)
    assert 0.7 < min(ratios) < 0.78 < 1.25 < max(ratios) < 1.4


def test_an_image_no_crop_fits_gives_its_centre() -> None:
    crop = transforms.inception_crop(picture(gradient(4, 200)), 4, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, gradient(4, 200)[:, 98:102])


def test_shifted_images_are_black_where_they_left() -> None:
    image = gradient(5, 6) + 1
    offsets = np.array([[0, 0], [2, 0], [-1, 3], [0, -2], [1, 1]])
    moved = transforms.shift(np.stack([image] * 5), offsets)
    for result, (down, right) in zip(moved, offsets, strict=True):
        for row in range(5):
            for column in range(6):
                inside = 0 <= row - down < 5 and 0 <= column - right < 6
                expected = image[row - down, column - right] if inside else 0
                np.testing.assert_array_equal(result[row, column], expected)


def test_shifted_images_are_mirrored_where_they_left() -> None:
    image = np.arange(6 * 7).reshape(6, 7, 1).astype(np.uint8)
    moved = transforms.shift(np.stack([image] * 2), np.array([[2, -1], [0, 0]]), reflect=True)
    np.testing.assert_array_equal(moved[0], image[[2, 1, 0, 1, 2, 3]][:, [1, 2, 3, 4, 5, 6, 5]])
    np.testing.assert_array_equal(moved[1], image)


@pytest.mark.parametrize("channels", [1, 3])
def test_only_the_chosen_are_mirrored(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, channels), np.uint8)
    mirrored = images.copy()
    transforms.mirror(mirrored, np.array([True, False, False, True]))
    np.testing.assert_array_equal(mirrored[1:3], images[1:3])
    np.testing.assert_array_equal(mirrored[[0, 3]], images[[0, 3], :, ::-1])


def test_center_crop_cuts_the_margin_off_evenly() -> None:
    image = gradient(40, 60)
    np.testing.assert_array_equal(transforms.center_crop(image, 32, 8), image[4:36, 14:46])
    assert transforms.center_crop(image, 64, 16).shape == (64, 64, 3)


def test_both_center_crops_see_the_same_part() -> None:
    image = gradient(160, 200)
    cropped, padded = (crop(image, 64, 16) for crop in transforms.TEST_CROPS.values())
    assert cropped.shape == padded.shape == (64, 64, 3)
    np.testing.assert_allclose(cropped.astype(int), padded, atol=1)
    np.testing.assert_array_equal(
        transforms.padded_center_crop(gradient(40, 60), 32, 8), gradient(40, 60)[4:36, 14:46]
    )
