"""Scenes of handwritten digits on photographs: what scikit-learn ships, with exact masks."""

import dataclasses
import functools

import cv2
import numpy as np

from nfnets_jax.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from nfnets_jax.data.sources import ArraySource, Dataset, open_dataset
from nfnets_jax.data.sources.source import Record

from .objects import Objects, boxes_of

_TEST_SCENES = 400
_MOST_DIGITS = 6
# Side of the part of a photograph behind a scene, pixels.
_BACKGROUND_SIDES = (64, 128)
# Side of a digit over that of the scene, and its largest rotation in degrees.
_DIGIT_SIDES = (0.25, 0.5)
_ROTATION = 20.0
_OPACITIES = (0.75, 1.0)
# Ink that counts as the digit, of 255.
_INK = 100
# Share of a digit that later ones must leave visible, and the places that are tried for each.
_LEAST_VISIBLE, _TRIES = 0.75, 8
# Least difference in brightness between a digit and what is behind it, of 255.
_CONTRAST = 70


def open_scenes(count: int, size: int, seed: int = 0) -> Dataset:
    """Opens scenes to train on and 400 to test on, which have no digit and no background in common.

    Digits are those of the dataset ``digits``. Backgrounds are parts of scikit-learn's two
    photographs: of the left halves for training, of the right halves for testing.

    Args:
      count: number of training scenes.
      size: side of the scenes, pixels.
      seed: decides all scenes.
    """
    digits = open_dataset("digits")
    assert digits.test is not None
    return Dataset(
        SceneSource(count, size, seed, "train"),
        SceneSource(_TEST_SCENES, size, seed, "test"),
        digits.class_names,
        3,
        IMAGENET_MEAN,
        IMAGENET_STD,
    )


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """Scenes by position; a scene depends on the split, the seed and its position alone.

    Attributes:
      length: number of scenes.
      size: their side, pixels.
      seed: decides all of them.
      split: ``train`` or ``test``.
    """

    length: int
    size: int
    seed: int
    split: str

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng((self.seed, self.split == "test", index))
        image, objects = draw_scene(self.size, self.split, rng)
        return Record(image=image, label=objects, name=f"{self.split} scene {index}")


def draw_scene(size: int, split: str, rng: np.random.Generator) -> tuple[np.ndarray, Objects]:
    """Draws one to six digits on a background, the later ones above the earlier.

    Returns:
      The scene ``[size, size, 3]`` uint8, and its digits. Their masks are what can be seen of
      them, and their boxes are those of the masks.
    """
    source = _digits(split)
    image = _draw_background(size, split, rng).astype(np.float32)
    masks = np.zeros((0, size, size), bool)
    classes: list[int] = []
    areas: list[int] = []  # Before later digits hide some.
    for _ in range(rng.integers(1, _MOST_DIGITS + 1)):
        chosen = rng.integers(len(source))
        for _ in range(_TRIES):
            ink = _draw_ink(source.images[chosen, ..., 0], size, rng)
            own = ink > _INK
            seen = masks & ~own
            if all(seen.sum((1, 2)) >= _LEAST_VISIBLE * np.array(areas)):
                masks = np.concatenate([seen, own[None]])
                image = _blend(image, ink, own, rng)
                classes.append(int(source.labels[chosen]))
                areas.append(int(own.sum()))
                break
    crowd = np.zeros(len(classes), bool)
    found = Objects(boxes_of(masks), np.array(classes, np.int32), crowd, (size, size), masks)
    return np.round(image).astype(np.uint8), found


@functools.cache
def _digits(split: str) -> ArraySource:
    digits = open_dataset("digits")
    source = digits.train if split == "train" else digits.test
    assert isinstance(source, ArraySource)
    return source


@functools.cache
def _photographs(split: str) -> list[np.ndarray]:
    """Returns the halves of the photographs that a split has."""
    from sklearn.datasets import load_sample_images  # It takes a second to import.

    halves = [np.array_split(image, 2, axis=1) for image in load_sample_images().images]
    return [left if split == "train" else right for left, right in halves]


def _draw_background(size: int, split: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a square part of a photograph, ``[size, size, 3]`` uint8."""
    photographs = _photographs(split)
    photograph = photographs[rng.integers(len(photographs))]
    side = rng.integers(_BACKGROUND_SIDES[0], _BACKGROUND_SIDES[1] + 1)
    top, left = (rng.integers(length - side + 1) for length in photograph.shape[:2])
    part = photograph[top : top + side, left : left + side]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)


def _draw_ink(digit: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a digit ``[8, 8]`` uint8 enlarged, rotated and moved, ``[size, size]`` uint8."""
    side = size * rng.uniform(*_DIGIT_SIDES)
    centre = rng.uniform(side / 2, size - side / 2, 2)
    angle = rng.uniform(-_ROTATION, _ROTATION)
    middle = (len(digit) - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, side / len(digit))
    matrix = matrix + np.array([[0, 0, centre[0]], [0, 0, centre[1]]]) - [0, 0, middle + 0.5]
    return cv2.warpAffine(digit, matrix, (size, size), flags=cv2.INTER_CUBIC)


def _blend(
    image: np.ndarray, ink: np.ndarray, own: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws ink on an image in a colour that differs from what is behind it."""
    behind = float(image[own].mean())
    brightness = rng.uniform(0, 255)
    while abs(brightness - behind) < _CONTRAST:
        brightness = rng.uniform(0, 255)
    colour = np.clip(brightness + rng.uniform(-60, 60, 3), 0, 255)
    share = (ink / 255 * rng.uniform(*_OPACITIES))[..., None]
    return share * colour + (1 - share) * image
