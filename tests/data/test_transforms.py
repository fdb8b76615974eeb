import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def reference_box(height: int, width: int, draw: Callable[[float, float], float]) -> list[float]:
    """Draws a part as deepmind-research, nfnets/dataset.py, has TensorFlow draw it.

    It is written without pixels, from the published settings: a ratio of the sides from 3/4 to 4/3,
    8 to 100% of the area, at least 10% of the one object, ten attempts. TensorFlow's
    core/kernels/image/sample_distorted_bounding_box_op.cc draws the ratio, then the height.

    Returns:
      Shares of the area, of the height and of the places above and to the left, and the ratio.
    """
    shape = width / height
    for _ in range(10):
        ratio = draw(3 / 4, 4 / 3)
        low = math.sqrt(0.08 * shape / ratio)
        high = min(math.sqrt(shape / ratio), 1.0, shape / ratio)
        part = draw(low, high)
        area = part * part * ratio / shape
        if area >= 0.1:
            return [area, part, draw(0, 1), draw(0, 1), ratio]
    raise AssertionError("one in 10^7")


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest difference of two cumulative distributions, by Kolmogorov and Smirnov."""
    places = np.concatenate([ours, theirs])
    below = [np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (ours, theirs)]
    return float(np.abs(below[0] - below[1]).max())


@pytest.mark.parametrize("shape", [(3750, 5000), (4000, 2000)])
def test_distorted_boxes_have_the_published_distribution(shape: tuple[int, int]) -> None:
    """Samples of ``n`` draws from one distribution are 1.95 sqrt(2 / n) apart once in 1000."""
    height, width = shape
    rng, count = np.random.default_rng(0), 6000
    theirs = np.array([reference_box(height, width, rng.uniform) for _ in range(count)])
    ours, inception = np.empty((2, count, 5))
    for i in range(count):
        box = transforms.distorted_box(height, width, rng)
        assert box is not None
        for draws, (top, left, h, w) in (
            (ours, box),
            (inception, transforms._inception_box(height, width, rng)),
        ):
            places = top / max(1, height - h), left / max(1, width - w)
            draws[i] = h * w / (height * width), h / height, *places, w / h
    bound = 1.95 * math.sqrt(2 / count)
    for column in range(5):
        assert distance(ours[:, column], theirs[:, column]) < bound
    # The test can tell them from boxes of uniform area.
    assert distance(inception[:, 0], theirs[:, 0]) > 2 * bound


def test_the_distorted_crop_of_an_image_that_none_fits_is_its_padded_center() -> None:
    """As published: deepmind-research, nfnets/dataset.py, ``_decode_and_center_crop``.

    Of 40 x 1000 pixels no part with a ratio up to 4/3 has 8% of the area. At 32 + 32 pixels the
    square is half as high as the image.
    """
    image = gradient(40, 1000)
    crop = transforms.distorted_crop(picture(image), 32, np.random.default_rng(0))
    np.testing.assert_array_equal(crop, transforms.resize(image[10:30, 490:510], 32, 32))


def test_the_distorted_crop_of_a_whole_image_is_its_padded_center() -> None:
    class Largest:
        uniform = staticmethod(lambda low, high: 1.0)
        integers = staticmethod(lambda low, high: high - 1)

    image = gradient(64, 64)
    crop = transforms.distorted_crop(picture(image), 32, Largest())  # type: ignore[arg-type]
    np.testing.assert_array_equal(crop, image[16:48, 16:48])


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


@pytest.mark.parametrize("crop", ["resize", "padded"])
def test_evaluation_crops_the_margin_evenly(crop: str) -> None:
    image = gradient(40, 60)
    np.testing.assert_array_equal(transforms.eval_crop(image, 32, 8, crop), image[4:36, 14:46])
    assert transforms.eval_crop(image, 64, 16, crop).shape == (64, 64, 3)
    assert transforms.eval_crop(image[..., :1], 20, 0, crop).shape == (20, 20, 1)


def check_squashed(image: np.ndarray, crop: np.ndarray, margin: int) -> None:
    """Compares with Pillow, which resizes the whole image: 2 levels of 255 at 99% of the pixels.

    The authors evaluate NFNets so: deepmind-research, nfnets/experiment_nfnets.py,
    ``resize_crop_32``; their nfnet_demo_colab.ipynb does it with Pillow.
    """
    size, start = len(crop), (margin + 1) // 2
    whole = Image.fromarray(image).resize((size + margin,) * 2, Image.Resampling.BICUBIC)
    theirs = np.asarray(whole.crop((start, start, start + size, start + size)))
    close = np.abs(crop.astype(int) - theirs) <= 2
    assert close.mean() >= 0.99


@pytest.mark.parametrize("margin", [0, 32, 33])
@pytest.mark.parametrize("shape", [(150, 200), (301, 97), (30, 41)])
def test_the_squashed_crop_of_any_image_is_pillows(shape: tuple[int, int], margin: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    check_squashed(noise, transforms.squashed_crop(noise, 64, margin), margin)
    gray = transforms.squashed_crop(noise[..., :1], 64, margin)
    check_squashed(noise[..., [0, 0, 0]], np.repeat(gray, 3, axis=2), margin)


def test_the_squashed_crop_of_a_photograph_is_pillows(shared: Path) -> None:
    files = sorted(shared.glob("data/imagenet-samples/train/*/*.JPEG"))[::40]
    assert files
    for file in files:
        crop = transforms.CenterCrop(256, 32, "squash")(Picture(file, file.name))
        check_squashed(np.asarray(Image.open(file).convert("RGB")), crop, 32)


def bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes by Keys' interpolation of four pixels, with a = -0.75, and no antialiasing."""
    for axis in (0, 1):
        image = np.moveaxis(image, axis, 0)
        at = (np.arange(size) + 0.5) * len(image) / size - 0.5
        near = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
        d = np.abs(at[:, None] - near)
        weights = np.where(
            d < 1, 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        )
        taken = image[np.clip(near, 0, len(image) - 1)].astype(float)
        image = np.moveaxis(np.einsum("ik,ik...->i...", weights, taken), 0, axis)
    return np.clip(image, 0, 255)


@pytest.mark.parametrize("shape", [(375, 500), (301, 97)])
def test_the_padded_crop_is_the_resized_center(shape: tuple[int, int]) -> None:
    """As published: deepmind-research, nfnets/dataset.py, ``_decode_and_center_crop``.

    TensorFlow's interpolation has a = -0.5, OpenCV's a = -0.75.
    """
    height, width = shape
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    side = int(min(shape) / (64 + 32) * 64)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    expected = bicubic(image[top : top + side, left : left + side], 64)
    np.testing.assert_allclose(transforms.padded_center_crop(image, 64, 32), expected, atol=2)


def test_the_crops_that_keep_proportions_show_the_same_part() -> None:
    image = gradient(160, 200)
    resized, padded = (transforms.eval_crop(image, 64, 16, crop) for crop in ("resize", "padded"))
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
        with pytest.raises(InputError, match="no crop 'x' for evaluation; there are resize, squa"):
            make()
