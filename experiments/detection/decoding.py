"""Detections from what a detector predicts: the peaks of the heat, and the boxes there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .losses import boxes_at


class Detections(NamedTuple):
    """The likeliest objects in images, the likeliest first.

    Attributes:
      boxes: ``[N, D, 4]``, in pixels.
      scores: ``[N, D]``, from 0 to 1.
      classes: ``[N, D]`` int32.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array


def decode(logits: jax.Array, distances: jax.Array, stride: int, most: int) -> Detections:
    """Returns the objects at the peaks of the heat.

    A peak is as high as its eight neighbours at least, so that overlapping boxes need not be
    suppressed (Zhou et al. 2019, arXiv:1904.07850, section 4).

    Args:
      logits: ``[N, h, w, K]``.
      distances: ``[N, h, w, 4]``, to the edges of the boxes.
      stride: pixels between neighbouring predictions.
      most: largest number of objects an image, D; fewer if there are fewer predictions.
    """
    examples, height, width, classes = logits.shape
    heat = jax.nn.sigmoid(logits)
    highest = lax.reduce_window(heat, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    peaks = jnp.where(heat == highest, heat, 0).reshape(examples, -1)
    scores, places = lax.top_k(peaks, min(most, height * width * classes))
    boxes = boxes_at(distances, stride).reshape(examples, height * width, 4)
    boxes = jnp.take_along_axis(boxes, (places // classes)[..., None], axis=1)
    return Detections(boxes, scores, (places % classes).astype(jnp.int32))


def stride_of(images: jax.Array, logits: jax.Array) -> int:
    """Returns the pixels between the predictions ``[N, h, w, K]`` for images ``[N, H, W, C]``."""
    return -(-images.shape[1] // logits.shape[1])
