"""The task of semantic segmentation: the class of each pixel."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from nfnets_jax.data.sources import Dataset
from nfnets_jax.devices import AXIS, DeviceBatch
from nfnets_jax.models.registry import Model
from nfnets_jax.training import objective
from nfnets_jax.training.task import Metrics, Outputs, Score

from .dense_task import DenseTask
from .examples import Encode, encode_class_map
from .network import create_dense_model
from .objects import IGNORED
from .settings import Settings, read_settings

# A pixel of the pyramid tells the classes of so many in a row and in a column.
_SUBPIXELS = 2


class Segmentation(DenseTask):
    """The task of telling for each pixel what it shows; its methods are those of ``Task``.

    A batch holds ``image`` ``[N, S, S, 3]`` uint8 and ``label`` ``[N, S, S]`` uint8: 0 for the
    background, ``k + 1`` for class ``k``, 255 for what does not count.
    """

    score = Score("mIoU", "mIoU")
    needs_masks = True

    def encode(self, settings: Settings) -> Encode:
        """Returns what makes the map of labels."""
        del settings
        return encode_class_map

    def create_model(self, config: ConfigDict, num_classes: int) -> Model:
        """Creates a backbone with a head that predicts the background and the classes."""
        return create_dense_model(
            config, num_classes + 1, read_settings(config), subpixels=_SUBPIXELS
        )

    def losses(self, outputs: Outputs, batch: DeviceBatch, label_smoothing: float) -> Metrics:
        """Computes means over the pixels of each example: ``loss`` and ``pixel_accuracy``.

        The loss weights pixels by ``class_weights``.
        """
        logits, labels = enlarge(outputs["logits"], batch["image"]), batch["label"].astype(int)
        classes = logits.shape[-1]
        # The last class stands in for pixels that do not count.
        flat = jnp.minimum(labels, classes - 1).reshape(-1)
        losses = objective.cross_entropy(logits.reshape(-1, classes), flat, label_smoothing)
        right = most_probable(logits) == labels

        def mean(values: jax.Array, weights: jax.Array) -> jax.Array:
            total = jnp.sum(values.reshape(labels.shape) * weights, axis=(1, 2))
            return total / jnp.maximum(jnp.sum(weights, axis=(1, 2)), 1)

        return {
            "loss": mean(losses, class_weights(labels, classes)),
            "pixel_accuracy": mean(right, labels != IGNORED),
        }

    def evaluate(self, outputs: Outputs, batch: DeviceBatch) -> Metrics:
        """Sums ``loss``, ``examples`` and the ``confusion`` of pixels, ``[K, K]``."""
        logits = enlarge(outputs["logits"], batch["image"])
        labels, classes = batch["label"].astype(int), logits.shape[-1]
        counted = (labels != IGNORED) & (batch["mask"] > 0)[:, None, None]
        cells = jnp.where(counted, labels * classes + most_probable(logits), classes**2)
        pixels = jnp.bincount(cells.reshape(-1), length=classes**2 + 1)[:-1]
        sums = {
            "loss": jnp.sum(self.losses(outputs, batch, 0.0)["loss"] * batch["mask"]),
            "examples": jnp.sum(batch["mask"]),
            "confusion": pixels.reshape(classes, classes),
        }
        return lax.psum(sums, AXIS)

    def meter(self, dataset: Dataset) -> "MeanIoU":
        """Makes the mean IoU over the classes and the background."""
        return MeanIoU(len(dataset.class_names) + 1)


def class_weights(labels: jax.Array, classes: int) -> jax.Array:
    """Returns one over the root of the number of pixels of a pixel's class in its image.

    Weights of one for all pixels would let the background decide, and equal weights for all classes
    would move their borders into the background; these lie between the two.

    Args:
      labels: ``[N, H, W]``; those that are not below ``classes`` do not count.
      classes: their number, with the background.

    Returns:
      ``[N, H, W]`` float32, 0 for pixels that do not count.
    """
    one_hot = jax.nn.one_hot(labels, classes)
    pixels = jnp.sum(one_hot, axis=(1, 2), keepdims=True)
    return jnp.sum(one_hot * lax.rsqrt(jnp.maximum(pixels, 1)), axis=-1)


def most_probable(logits: jax.Array) -> jax.Array:
    """Returns the most probable class of each pixel, ``[N, H, W]``, by logits ``[N, H, W, K]``.

    Trained with ``class_weights``, a network gives rare classes more than their probability. So
    logits get back the root of the number of pixels that their class seems to have in the image
    (logit adjustment, Menon et al. 2020, arXiv:2007.07314).
    """
    pixels = jnp.sum(jax.nn.softmax(logits), axis=(1, 2), keepdims=True)
    return jnp.argmax(logits + jnp.log1p(pixels) / 2, axis=-1)


def enlarge(logits: jax.Array, images: jax.Array) -> jax.Array:
    """Interpolates logits ``[N, h, w, K]`` linearly to the pixels of images ``[N, H, W, C]``.

    Sums of slices, as XLA finds no tiles for ``jax.image.resize``'s products on an H100.
    """
    height, width = images.shape[1:3]
    for axis, size in ((1, height), (2, width)):
        logits = _interpolate(logits, -(-size // logits.shape[axis]), axis)
    return logits[:, :height, :width]


def _interpolate(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Makes an axis longer by a whole factor; beyond its ends are the values at the ends."""
    size = x.shape[axis]
    padded = jnp.pad(x, [(int(k == axis),) * 2 for k in range(x.ndim)], "edge")
    before = lax.slice_in_dim(padded, 0, size, axis=axis)
    after = lax.slice_in_dim(padded, 2, size + 2, axis=axis)
    finer = []
    for place in range(factor):
        offset = (place + 0.5) / factor - 0.5
        neighbour = before if offset < 0 else after
        finer.append((1 - abs(offset)) * x + abs(offset) * neighbour)
    shape = (*x.shape[:axis], factor * size, *x.shape[axis + 1 :])
    return jnp.stack(finer, axis + 1).reshape(shape)


class MeanIoU:
    """Intersection over union of each class's pixels in all test images, a ``Meter``."""

    def __init__(self, classes: int) -> None:
        self._confusion = np.zeros((classes, classes), np.int64)
        self._loss = self._examples = 0.0

    def add(self, figures: Mapping[str, np.ndarray]) -> None:
        """Adds the sums over a batch."""
        self._confusion += figures["confusion"]
        self._loss += float(figures["loss"])
        self._examples += float(figures["examples"])

    def result(self) -> dict[str, float]:
        """Returns ``mIoU``, over the classes of any pixel, ``pixel_accuracy`` and ``loss``."""
        shown, right = self._confusion.sum(1), self._confusion.diagonal()
        union = shown + self._confusion.sum(0) - right
        present = shown > 0
        return {
            "mIoU": float(np.mean(right[present] / union[present])) if present.any() else 0.0,
            "pixel_accuracy": float(right.sum() / max(1, self._confusion.sum())),
            "loss": self._loss / self._examples,
            "examples": self._examples,
        }
