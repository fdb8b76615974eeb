"""Compares each operation with Pillow's, on photographs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from nfnets_jax.data import randaugment
from nfnets_jax.data.decoding import resize

SIDE = 96
GRAY = (128, 128, 128)


def moved(image: Image.Image, *matrix: float) -> Image.Image:
    """Transforms an image by the matrix from output to input coordinates, which Pillow takes."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=GRAY
    )


Reference = Callable[[Image.Image, float], Image.Image]

# Each at magnitude m; a geometric operation goes to the side of the sign of m.
REFERENCES: dict[str, Reference] = {
    "auto_contrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "invert": lambda image, m: ImageOps.invert(image),
    "rotate": lambda image, m: image.rotate(30 * m / 10, fillcolor=GRAY),
    "posterize": lambda image, m: ImageOps.posterize(image, int(4 * abs(m) / 10)),
    "solarize": lambda image, m: ImageOps.solarize(image, int(256 * abs(m) / 10)),
    "color": lambda image, m: ImageEnhance.Color(image).enhance(0.1 + 1.8 * abs(m) / 10),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * abs(m) / 10),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * abs(m) / 10),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * abs(m) / 10),
    "shear_x": lambda image, m: moved(image, 1, 0.3 * m / 10, 0, 0, 1, 0),
    "shear_y": lambda image, m: moved(image, 1, 0, 0, 0.3 * m / 10, 1, 0),
    "translate_x": lambda image, m: moved(image, 1, 0, 100 * m / 10, 0, 1, 0),
    "translate_y": lambda image, m: moved(image, 1, 0, 0, 0, 1, 100 * m / 10),
    "solarize_add": lambda image, m: image.point(
        lambda level: level + int(110 * abs(m) / 10) if level < 128 else level
    ),
}


class Signed:
    """A generator whose next sign is fixed."""

    def __init__(self, sign: int):
        self._sign = sign

    def random(self) -> float:
        return 0.25 if self._sign > 0 else 0.75


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[np.ndarray]:
    files = sorted(shared.glob("data/imagenet-samples/train/*/*.JPEG"))[::25]
    return [resize(np.asarray(Image.open(file).convert("RGB")), SIDE, SIDE) for file in files]


@pytest.mark.parametrize("magnitude", [3, 5, 10, 15])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", REFERENCES)
def test_operations_agree_with_pillow(
    name: str, sign: int, magnitude: int, photographs: list[np.ndarray]
) -> None:
    """Allows 2 levels of 256 at every pixel; in a rotation 1 pixel of 200 may differ by more."""
    for image in photographs:
        ours = randaugment.OPERATIONS[name](image, magnitude, Signed(sign))  # type: ignore[arg-type]
        theirs = np.asarray(REFERENCES[name](Image.fromarray(image), sign * magnitude))
        assert ours.shape == theirs.shape
        assert ours.dtype == np.uint8
        off = np.abs(ours.astype(int) - theirs) > 2
        assert off.mean() <= (0.005 if name == "rotate" else 0)


def test_cutout_grays_the_part_of_a_square_inside_the_image() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    covered = randaugment.cutout(image, 4, (2, 15))
    expected = np.zeros_like(image)
    expected[0:6, 11:19] = 128
    np.testing.assert_array_equal(covered, expected)
    assert not image.any()
    sides = [
        randaugment.OPERATIONS["cutout"](np.zeros((500, 500, 3), np.uint8), 10, rng).any(axis=2)
        for rng in map(np.random.default_rng, range(20))
    ]
    assert max(side.sum() for side in sides) == 80 * 80


def test_operations_are_uniform_and_leave_their_input_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    before, seen = image.copy(), dict.fromkeys(randaugment.OPERATIONS, 0)
    outcomes = {
        operation(image, 6, np.random.default_rng(1)).tobytes(): name
        for name, operation in randaugment.OPERATIONS.items()
        if name not in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "cutout")
    }
    for seed in range(1600):
        result = randaugment.randaugment(image, 1, 6, np.random.default_rng(seed))
        if name := outcomes.get(result.tobytes()):
            seen[name] += 1
    fixed = [seen[name] for name in outcomes.values()]
    assert all(60 < count < 145 for count in fixed)
    np.testing.assert_array_equal(image, before)
    nothing = randaugment.randaugment(image, 0, 6, np.random.default_rng(0))
    np.testing.assert_array_equal(nothing, image)
