import cv2
import numpy as np
import pytest

from nfnets_jax.data import transforms
from nfnets_jax.data.sources import Record
from nfnets_jax.errors import InputError


def gradient(height: int, width: int) -> np.ndarray:
    """An image whose first channel is the row, whose second the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)


def encode(image: np.ndarray, suffix: str) -> Record:
    return Record(image=cv2.imencode(suffix, image)[1].tobytes(), label=0, name="it")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_files_of_any_kind_become_rgb(suffix: str) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR.
    np.testing.assert_allclose(
        transforms.decode(encode(red, suffix)), np.full((8, 8, 3), [255, 0, 0]), atol=3
    )
    gray = transforms.decode(encode(np.full((8, 8), 100, np.uint8), suffix))
    np.testing.assert_allclose(gray, np.full((8, 8, 3), 100), atol=2)


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_what_is_no_image_is_named(content: bytes) -> None:
    with pytest.raises(InputError, match="cat.jpg is not a readable image"):
        transforms.decode(Record(image=content, label=0, name="cat.jpg"))


def test_inception_crops_cover_the_declared_shares_and_shapes() -> None:
    image, areas, ratios = gradient(200, 240), [], []
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
    crop = transforms.inception_crop(gradient(4, 200), 4, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, gradient(4, 200)[:, 98:102])


def test_pad_crop_moves_by_at_most_the_padding() -> None:
    image, offsets = gradient(8, 8) + 1, set()
    for seed in range(200):
        moved = transforms.pad_crop(image, 8, 2, np.random.default_rng(seed))
        offsets.add((int(moved[4, 4, 0]) - 5, int(moved[4, 4, 1]) - 5))
    assert offsets == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_center_crop_cuts_the_margin_off_evenly() -> None:
    image = gradient(40, 60)
    np.testing.assert_array_equal(transforms.center_crop(image, 32, 8), image[4:36, 14:46])
    assert transforms.center_crop(image, 64, 16).shape == (64, 64, 3)


def test_half_of_the_images_are_flipped() -> None:
    image = gradient(8, 8)
    transform = transforms.TrainTransform(8, "pad", padding=0, flip=True)
    record = Record(image=image, label=3, name="it")
    results = [transform.random_map(record, np.random.default_rng(i)) for i in range(400)]
    flipped = [not np.array_equal(result["image"], image) for result in results]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(results[flipped.index(True)]["image"], image[:, ::-1])
    assert all(result["label"] == 3 for result in results)


def test_unknown_crops_name_the_known() -> None:
    with pytest.raises(InputError, match="no crop 'centre'; data.crop is one of inception, pad"):
        transforms.TrainTransform(8, "centre", 0, False)
