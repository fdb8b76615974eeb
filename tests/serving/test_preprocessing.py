"""``preprocess`` next to the evaluation of a classifier, and to a plain crop."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.data.decoding import Picture
from nfnets_jax.errors import InputError
from nfnets_jax.serving.preprocessing import published_view

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def test_a_files_path_its_bytes_and_its_pixels_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    assert cv2.imwrite(str(path), PIXELS[..., ::-1])
    expected = nfnets_jax.preprocess(PIXELS, "nfnet_f0")
    assert expected.shape == (256, 256, 3)
    assert expected.dtype == np.float32
    for image in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(nfnets_jax.preprocess(image, "nfnet_f0"), expected)


def test_pixels_are_those_of_the_classifier_normalized() -> None:
    model = nfnets_jax.create_model("nf_resnet50")
    view = published_view(model)(Picture(PIXELS, "photo"))
    expected = (view / 255 - MEAN) / STD
    actual = nfnets_jax.preprocess(PIXELS, model)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert actual.shape[:2] == (model.data_config.test_size,) * 2


def test_a_gray_image_has_three_equal_channels() -> None:
    gray = nfnets_jax.preprocess(PIXELS[..., :1], "nfnet_micro") * STD + MEAN
    np.testing.assert_allclose(gray[..., 0], gray[..., 2], atol=1e-5)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match="no model 'nfnet_f9'"):
        nfnets_jax.preprocess(PIXELS, "nfnet_f9")
