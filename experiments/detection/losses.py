"""Targets and losses of a detector that finds the centres of objects.

Objects are points (Zhou et al. 2019, arXiv:1904.07850): a map for each class is 1 at the centres of
its objects and falls off around them, and boxes are predicted where it is high.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Standard deviation of a centre's surroundings over the side of its box (Liu et al. 2020,
# arXiv:1909.00700, section 3.2).
_SPREAD = 0.54 / 6
# Exponents of the focal loss: how fast it fades for what is certain, and around centres.
_FOCUS, _FADE = 2.0, 4.0
_LEAST = 1e-6


class Targets(NamedTuple):
    """What a detector should predict for an image.

    Attributes:
      heat: ``[h, w, K]``, 1 at the centres of a class's objects, falling to 0.
      boxes: ``[h, w, 4]``, the box of the object whose surroundings a pixel is in.
      weights: ``[h, w]``, of the pixel in the loss of the box; they sum to 1 for each object.
      counted: ``[h, w]``, 0 inside crowd regions, where nothing is known to be absent.
      objects: ``[]``, the number of objects.
    """

    heat: jax.Array
    boxes: jax.Array
    weights: jax.Array
    counted: jax.Array
    objects: jax.Array


def centres(height: int, width: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """Returns the columns ``[w]`` and rows ``[h]`` of the predictions' centres, in pixels."""
    return stride * (jnp.arange(width) + 0.5), stride * (jnp.arange(height) + 0.5)


def assign(
    boxes: jax.Array,
    labels: jax.Array,
    crowd: jax.Array,
    shape: tuple[int, int, int],
    stride: int,
) -> Targets:
    """Assigns objects to predictions.

    Args:
      boxes: ``[M, 4]`` in pixels.
      labels: ``[M]``, the class of each; -1 for a box that only fills the array.
      crowd: ``[M]`` booleans.
      shape: ``(h, w, K)`` of the predicted heat.
      stride: pixels between neighbouring predictions.

    Returns:
      The targets. A centre is in the cell that holds the middle of the box, where its heat is 1.
    """
    height, width, num_classes = shape
    is_object = (labels >= 0) & ~crowd
    x, y = centres(height, width, stride)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = jnp.clip(middle // stride, 0, jnp.array([width - 1, height - 1]))
    offsets_x = x - stride * (cells[:, :1] + 0.5)
    offsets_y = y - stride * (cells[:, 1:] + 0.5)
    spread = jnp.maximum(_SPREAD * (boxes[:, 2:] - boxes[:, :2]), _SPREAD * stride)
    exponent = (offsets_y / spread[:, 1:])[:, :, None] ** 2
    exponent += (offsets_x / spread[:, :1])[:, None, :] ** 2
    near = jnp.exp(-exponent / 2) * is_object[:, None, None]  # [M, h, w]

    of_class = jax.nn.one_hot(labels, num_classes)
    heat = jnp.max(near[..., None] * of_class[:, None, None, :], axis=0)
    owner = jnp.argmax(near, axis=0)
    owned = near * (owner == jnp.arange(len(boxes))[:, None, None])
    total = jnp.sum(owned, axis=(1, 2), keepdims=True)
    weights = jnp.sum(owned / jnp.maximum(total, _LEAST), axis=0)

    left, top, right, bottom = (edge[:, None, None] for edge in boxes.T)
    columns, rows = x[None, None, :], y[None, :, None]
    inside = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
    in_crowd = jnp.any(inside & (crowd & (labels >= 0))[:, None, None], axis=0)
    return Targets(
        heat,
        boxes[owner],
        weights,
        jnp.where(in_crowd & (weights == 0), 0.0, 1.0),
        jnp.sum(is_object),
    )


def heat_loss(logits: jax.Array, targets: Targets) -> jax.Array:
    """Computes the focal loss of the heat, over the number of objects, at least 1.

    Zhou et al. 2019, arXiv:1904.07850, equation 1.

    Args:
      logits: ``[h, w, K]``.
      targets: of one image.

    Returns:
      The loss of the image, in nats an object.
    """
    probability = jax.nn.sigmoid(logits)
    found = -jax.nn.log_sigmoid(logits) * (1 - probability) ** _FOCUS
    absent = -jax.nn.log_sigmoid(-logits) * probability**_FOCUS
    absent *= (1 - targets.heat) ** _FADE * targets.counted[..., None]
    total = jnp.sum(jnp.where(targets.heat == 1, found, absent))
    return total / jnp.maximum(targets.objects, 1)


def box_loss(distances: jax.Array, targets: Targets, stride: int) -> jax.Array:
    """Computes the mean over the objects of 1 minus the generalized IoU; 0 without objects.

    Rezatofighi et al. 2019, arXiv:1902.09630.

    Args:
      distances: ``[h, w, 4]``, to the edges of the predicted boxes.
      targets: of one image.
      stride: pixels between neighbouring predictions.
    """
    overlaps = generalized_iou(boxes_at(distances, stride), targets.boxes)
    return jnp.sum(targets.weights * (1 - overlaps)) / jnp.maximum(targets.objects, 1)


def boxes_at(distances: jax.Array, stride: int) -> jax.Array:
    """Returns the boxes ``[..., h, w, 4]`` at these distances around the centres, in pixels."""
    height, width = distances.shape[-3:-1]
    x, y = centres(height, width, stride)
    middle = jnp.stack(jnp.meshgrid(x, y), axis=-1)
    return jnp.concatenate([middle - distances[..., :2], middle + distances[..., 2:]], axis=-1)


def generalized_iou(first: jax.Array, second: jax.Array) -> jax.Array:
    """Computes the generalized intersection over union ``[...]`` of boxes ``[..., 4]``."""
    low, high = jnp.maximum(first, second), jnp.minimum(first, second)
    intersection = _area(jnp.concatenate([low[..., :2], high[..., 2:]], axis=-1))
    hull = _area(jnp.concatenate([high[..., :2], low[..., 2:]], axis=-1))
    union = _area(first) + _area(second) - intersection
    outside = (hull - union) / jnp.maximum(hull, _LEAST)
    return intersection / jnp.maximum(union, _LEAST) - outside


def _area(boxes: jax.Array) -> jax.Array:
    """Returns the areas of boxes, 0 for those whose edges are the wrong way around."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]
