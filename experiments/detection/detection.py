"""The task of detection: boxes of objects, by their centres."""

from typing import Any

import jax
from jax import lax
from ml_collections import ConfigDict

from nfnets_jax.data.sources import Dataset
from nfnets_jax.devices import AXIS, DeviceBatch
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model
from nfnets_jax.training.task import Metrics, Outputs, Score

from .average_precision import AveragePrecision, import_pycocotools
from .decoding import decode, stride_of
from .dense_task import DenseTask
from .examples import EncodeBoxes
from .losses import assign, box_loss, heat_loss
from .network import create_dense_model
from .settings import Settings, read_settings

# Of the loss of boxes, against that of the heat (Liu et al. 2020, arXiv:1909.00700, section 4).
_BOX_WEIGHT = 5.0


class Detection(DenseTask):
    """The task of finding objects; its methods are those of ``Task``.

    A batch holds ``image`` ``[N, S, S, 3]`` uint8, ``boxes`` ``[N, M, 4]`` in pixels, ``label``
    ``[N, M]``, -1 for none, and ``crowd`` ``[N, M]``.
    """

    score = Score("AP", "AP")

    def encode(self, settings: Settings) -> EncodeBoxes:
        """Returns what makes the arrays of boxes."""
        return EncodeBoxes(settings.most_objects)

    def open_dataset(self, config: ConfigDict) -> Dataset:
        """Opens the data.

        Raises:
          InputError: as ``DenseTask.open_dataset``; or pycocotools is not installed, which the end
            of a run would find.
        """
        import_pycocotools()
        return super().open_dataset(config)

    def create_model(self, config: ConfigDict, num_classes: int) -> Model:
        """Creates a backbone with a head that predicts heat and boxes."""
        if config.label_smoothing:
            raise InputError(
                f"label_smoothing is {config.label_smoothing}; task detection takes 0 alone"
            )
        return create_dense_model(config, num_classes, read_settings(config), boxes=True)

    def losses(self, outputs: Outputs, batch: DeviceBatch, label_smoothing: float) -> Metrics:
        """Computes ``loss`` and its terms ``heat_loss`` and ``box_loss`` of each example.

        Each is normalized by the objects in its own image, so that it does not depend on the other
        images of the batch.
        """
        del label_smoothing
        logits, stride = outputs["logits"], stride_of(batch["image"], outputs["logits"])

        def terms(
            logits: jax.Array,
            distances: jax.Array,
            boxes: jax.Array,
            labels: jax.Array,
            crowd: jax.Array,
        ) -> tuple[jax.Array, jax.Array]:
            shape: Any = logits.shape
            targets = assign(boxes, labels, crowd, shape, stride)
            return heat_loss(logits, targets), box_loss(distances, targets, stride)

        heat, box = jax.vmap(terms)(
            logits, outputs["distances"], batch["boxes"], batch["label"], batch["crowd"]
        )
        return {"loss": heat + _BOX_WEIGHT * box, "heat_loss": heat, "box_loss": box}

    def evaluate(self, outputs: Outputs, batch: DeviceBatch) -> Metrics:
        """Gathers the detections and the objects of all devices' images."""
        most = batch["label"].shape[1]
        found = decode(
            outputs["logits"],
            outputs["distances"],
            stride_of(batch["image"], outputs["logits"]),
            most,
        )
        of_device = {
            "loss": self.losses(outputs, batch, 0.0)["loss"],
            **{f"found_{name}": values for name, values in found._asdict().items()},
            **{name: batch[name] for name in ("boxes", "label", "crowd", "mask")},
        }

        def gather(values: jax.Array) -> jax.Array:
            return lax.all_gather(values, AXIS, tiled=True)

        return jax.tree.map(gather, of_device)

    def meter(self, dataset: Dataset) -> AveragePrecision:
        """Makes the average precision over the classes."""
        return AveragePrecision(len(dataset.class_names))
