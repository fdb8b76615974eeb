"""Targets, losses and decoding, compared with loops over pixels and objects."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.detection import losses
from experiments.detection.decoding import decode

STRIDE, HEIGHT, WIDTH, CLASSES = 4, 5, 6, 3
BOXES = np.array([[1, 2, 11, 17], [8, 4, 23, 12], [0, 0, 0, 0], [12, 12, 24, 20]], np.float32)
LABELS = np.array([1, 2, -1, 0], np.int32)
CROWD = np.array([False, False, False, True])
SPREAD = 0.54 / 6


@pytest.fixture(scope="module")
def targets() -> losses.Targets:
    shape = (HEIGHT, WIDTH, CLASSES)
    assign = jax.jit(losses.assign, static_argnums=(3, 4))
    return jax.tree.map(np.asarray, assign(BOXES, LABELS, CROWD, shape, STRIDE))


def near(box: np.ndarray, row: int, column: int) -> float:
    """The Gaussian of CenterNet around the cell that holds the middle of a box."""
    left, top, right, bottom = map(float, box)
    middle_column = math.floor((left + right) / 2 / STRIDE)
    middle_row = math.floor((top + bottom) / 2 / STRIDE)
    x = (column - middle_column) * STRIDE / max(SPREAD * (right - left), SPREAD * STRIDE)
    y = (row - middle_row) * STRIDE / max(SPREAD * (bottom - top), SPREAD * STRIDE)
    return math.exp(-(x**2 + y**2) / 2)


def test_each_pixel_is_assigned_as_by_a_loop(targets: losses.Targets) -> None:
    objects = [k for k in range(len(BOXES)) if LABELS[k] >= 0 and not CROWD[k]]
    for row in range(HEIGHT):
        for column in range(WIDTH):
            heats = {k: near(BOXES[k], row, column) for k in objects}
            for label in range(CLASSES):
                expected = max([heats[k] for k in objects if LABELS[k] == label], default=0.0)
                assert targets.heat[row, column, label] == pytest.approx(expected, abs=1e-6)
            owner = max(objects, key=lambda k: heats[k])
            if heats[owner] > 1e-6:
                np.testing.assert_array_equal(targets.boxes[row, column], BOXES[owner])
    assert targets.objects == 2
    assert targets.heat.max((0, 1)).tolist() == [0, 1, 1]


def test_weights_of_each_object_sum_to_one(targets: losses.Targets) -> None:
    for box in BOXES[:2]:
        own = (targets.boxes == box).all(-1)
        assert targets.weights[own].sum() == pytest.approx(1, abs=1e-5)


def test_nothing_is_known_to_be_absent_in_a_crowd(targets: losses.Targets) -> None:
    for row in range(HEIGHT):
        for column in range(WIDTH):
            x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
            left, top, right, bottom = BOXES[3]
            inside = left <= x < right and top <= y < bottom
            if targets.weights[row, column] == 0:
                assert targets.counted[row, column] == (0 if inside else 1)


def test_heat_loss_is_the_published_formula(targets: losses.Targets) -> None:
    logits = np.random.default_rng(0).normal(-2, 2, (HEIGHT, WIDTH, CLASSES))
    total = 0.0
    for row, column, label in np.ndindex(logits.shape):
        p = 1 / (1 + math.exp(-logits[row, column, label]))
        y = float(targets.heat[row, column, label])
        if y == 1:
            total -= (1 - p) ** 2 * math.log(p)
        elif targets.counted[row, column]:
            total -= (1 - y) ** 4 * p**2 * math.log(1 - p)
    actual = losses.heat_loss(jnp.asarray(logits), targets)
    assert float(actual) == pytest.approx(total / 2, rel=1e-4)


def plain_giou(a: Any, b: Any) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def test_generalized_iou_is_that_of_a_plain_formula() -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 10, (2, 50, 2, 2))
    first, second = np.sort(corners, axis=2).reshape(2, 50, 4)
    expected = [plain_giou(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(
        losses.generalized_iou(jnp.asarray(first), jnp.asarray(second)),
        np.array(expected),
        atol=1e-5,
    )
    assert min(expected) < 0 < max(expected)


def distances_to(boxes: Any) -> np.ndarray:
    """Returns the distances from the centre of each cell to the edges of its box."""
    x, y = np.meshgrid((np.arange(WIDTH) + 0.5) * STRIDE, (np.arange(HEIGHT) + 0.5) * STRIDE)
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    return np.stack([x - left, y - top, right - x, bottom - y], axis=-1)


def test_box_loss_counts_every_object_alike(targets: losses.Targets) -> None:
    """Distances that are right for all pixels of one object and not the other give half the loss
    of the other."""
    right = distances_to(targets.boxes)
    assert float(losses.box_loss(jnp.asarray(right), targets, STRIDE)) == pytest.approx(0, abs=1e-6)
    first = (targets.boxes == BOXES[0]).all(-1)[..., None]
    wrong = np.where(first, 0.0, right)  # An empty box in the centre of a cell.
    one = float(losses.box_loss(jnp.asarray(wrong), targets, STRIDE))
    assert 0.4 < one < 1.0


def test_an_image_without_objects_has_a_loss() -> None:
    shape = (HEIGHT, WIDTH, CLASSES)
    nothing = losses.assign(jnp.zeros((2, 4)), jnp.full(2, -1), jnp.zeros(2, bool), shape, STRIDE)
    distances = jnp.ones((HEIGHT, WIDTH, 4))
    assert float(losses.box_loss(distances, nothing, STRIDE)) == 0
    certain = losses.heat_loss(jnp.full(shape, 3.0), nothing)
    assert float(certain) > float(losses.heat_loss(jnp.full(shape, -3.0), nothing)) > 0


def test_what_is_assigned_is_decoded_again(targets: losses.Targets) -> None:
    logits = jnp.asarray(np.log(np.maximum(targets.heat, 1e-9)))[None]
    distances = distances_to(targets.boxes)
    found = decode(logits, jnp.asarray(distances)[None], STRIDE, most=2)
    order = np.argsort(found.classes[0])
    assert found.classes[0][order].tolist() == [1, 2]
    np.testing.assert_allclose(found.boxes[0][order], BOXES[:2], atol=1e-5)
    np.testing.assert_allclose(found.scores[0], 0.5)


def test_peaks_are_those_of_a_loop() -> None:
    logits = np.random.default_rng(2).normal(size=(2, HEIGHT, WIDTH, CLASSES)).astype(np.float32)
    found = decode(jnp.asarray(logits), jnp.ones((2, HEIGHT, WIDTH, 4)), STRIDE, most=4)
    for image in range(2):
        peaks = []
        for row, column, label in np.ndindex(logits.shape[1:]):
            around = logits[
                image, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2, label
            ]
            if logits[image, row, column, label] == around.max():
                peaks.append((float(logits[image, row, column, label]), label, row, column))
        peaks.sort(reverse=True)
        assert found.classes[image].tolist() == [label for _, label, _, _ in peaks[:4]]
        middles = [((c + 0.5) * STRIDE, (r + 0.5) * STRIDE) for _, _, r, c in peaks[:4]]
        np.testing.assert_allclose(found.boxes[image][:, :2] + 1, middles)


def test_both_losses_can_be_minimized() -> None:
    """Gradient descent on the outputs themselves finds the objects, without a network."""
    shape = (HEIGHT, WIDTH, CLASSES)
    boxes, labels, crowd = map(jnp.asarray, (BOXES, LABELS, CROWD))
    targets = losses.assign(boxes, labels, crowd, shape, STRIDE)

    def loss(outputs: Any) -> jax.Array:
        logits, raw = outputs
        distances = STRIDE * jax.nn.softplus(raw)
        return losses.heat_loss(logits, targets) + losses.box_loss(distances, targets, STRIDE)

    optimizer = optax.adam(0.3)
    outputs = (jnp.full(shape, -4.0), jnp.zeros((HEIGHT, WIDTH, 4)))

    @jax.jit
    def step(outputs: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(outputs), state)
        return optax.apply_updates(outputs, updates), state

    state = optimizer.init(outputs)
    for _ in range(150):
        outputs, state = step(outputs, state)
    logits, raw = outputs
    found = decode(logits[None], STRIDE * jax.nn.softplus(raw)[None], STRIDE, most=2)
    order = np.argsort(found.classes[0])
    assert found.scores[0].min() > 0.8
    np.testing.assert_allclose(found.boxes[0][order], BOXES[:2], atol=1.0)
