"""Augmentation moves boxes and masks with the image, tested by drawing."""

import numpy as np
import pytest

from experiments.detection.objects import IGNORED, Objects, boxes_of
from experiments.detection.placement import Jitter, Placement, fit

HEIGHT, WIDTH, SIZE = 60, 90, 64


def drawn() -> tuple[np.ndarray, Objects]:
    """A black image with a red and a green rectangle."""
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, 10:30, 15:50] = True
    masks[1, 35:55, 60:85] = True
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[masks[0], 0] = 255
    pixels[masks[1], 1] = 255
    crowd = np.zeros(2, bool)
    return pixels, Objects(
        boxes_of(masks), np.arange(2, dtype=np.int32), crowd, (HEIGHT, WIDTH), masks
    )


def test_boxes_are_around_their_masks() -> None:
    _, objects = drawn()
    assert objects.boxes.tolist() == [[15, 10, 50, 30], [60, 35, 85, 55]]
    assert boxes_of(np.zeros((0, 4, 4), bool)).shape == (0, 4)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scales", [(0.7, 1.6), (0.3, 0.4)])
def test_boxes_and_labels_follow_the_image(seed: int, scales: tuple[float, float]) -> None:
    pixels, objects = drawn()
    placement = Jitter(SIZE, scales, flip=True).draw(HEIGHT, WIDTH, np.random.default_rng(seed))
    image, moved = placement.image(pixels), placement.objects(objects)
    labels = placement.labels(objects.class_map())
    assert image.shape == (SIZE, SIZE, 3)
    for box, label in zip(moved.boxes, moved.classes, strict=True):
        colored = (image[..., label] > 127) & (image[..., 2] < 60)
        (found,) = boxes_of(colored[None])
        np.testing.assert_allclose(found, box, atol=1.01)
        (found,) = boxes_of((labels == label + 1)[None])
        np.testing.assert_allclose(found, box, atol=1.01)


def test_fitting_shows_the_whole_image_and_leads_back() -> None:
    pixels, objects = drawn()
    placement = fit(HEIGHT, WIDTH, SIZE)
    moved = placement.objects(objects)
    assert len(moved.boxes) == 2
    np.testing.assert_allclose(placement.back(moved.boxes), objects.boxes, atol=1e-4)
    scale = SIZE / WIDTH
    image = placement.image(pixels)
    gray = image.std(axis=2) + abs(image.mean(axis=2) - 124) < 1
    assert gray.sum() == pytest.approx(SIZE * (SIZE - scale * HEIGHT), rel=0.1)


def test_an_object_of_which_little_stays_is_left_out() -> None:
    _, objects = drawn()
    beside = Placement(SIZE, 1.0, left=-45, top=0)
    assert beside.objects(objects).classes.tolist() == [1]
    mirrored = Placement(SIZE, 1.0, left=-45, top=0, mirror=True)
    np.testing.assert_allclose(mirrored.objects(objects).boxes, [[24, 35, 49, 55]])


def test_smaller_objects_lie_on_larger_ones_and_crowds_do_not_count() -> None:
    masks = np.zeros((3, 4, 4), bool)
    masks[0, 1:3, 1:3] = True
    masks[1] = True
    masks[2, 0] = True
    objects = Objects(
        boxes_of(masks),
        np.array([4, 2, 0], np.int32),
        np.array([False, False, True]),
        (4, 4),
        masks,
    )
    labels = objects.class_map()
    assert labels[1, 1] == 5
    assert labels[3, 3] == 3
    assert (labels[0] == IGNORED).all()
