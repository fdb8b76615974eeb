"""Average precision, as COCO defines it and as pycocotools computes it."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from nfnets_jax.errors import InputError


class AveragePrecision:
    """AP of the detections in all test images, a ``Meter``."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._losses, self._images = 0.0, 0
        self._found: list[np.ndarray] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, figures: Mapping[str, np.ndarray]) -> None:
        """Adds a batch of images.

        Args:
          figures: ``loss`` ``[N]``; ``mask`` ``[N]``, 0 for an image that does not count; its
            objects ``boxes`` ``[N, M, 4]``, ``label`` ``[N, M]``, -1 for none, and ``crowd``
            ``[N, M]``; and what was found, ``found_boxes`` ``[N, D, 4]``, ``found_scores`` and
            ``found_classes`` ``[N, D]``.
        """
        for place in np.flatnonzero(figures["mask"]):
            one = {name: values[place] for name, values in figures.items()}
            self._losses += float(one["loss"])
            boxes = _corner_and_sides(one["found_boxes"])
            columns = (
                np.full(len(boxes), self._images),
                *boxes.T,
                one["found_scores"],
                one["found_classes"],
            )
            self._found.append(np.stack(columns, axis=1).astype(float))
            for k in np.flatnonzero(one["label"] >= 0):
                left, top, width, height = map(float, _corner_and_sides(one["boxes"][k]))
                self._annotations.append(
                    {
                        "id": len(self._annotations) + 1,
                        "image_id": self._images,
                        "category_id": int(one["label"][k]),
                        "bbox": [left, top, width, height],
                        "area": width * height,
                        "iscrowd": int(one["crowd"][k]),
                    }
                )
            self._images += 1

    def result(self) -> dict[str, float]:
        """Returns ``AP``, the mean over IoUs of 0.5 to 0.95, ``AP50``, ``AP75`` and ``loss``.

        They are 0 where no test image has an object.
        """
        coco, evaluation = import_pycocotools()
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco()
            truth.dataset = {
                "info": {},
                "images": [{"id": image} for image in range(self._images)],
                "categories": [{"id": label} for label in range(self._num_classes)],
                "annotations": self._annotations,
            }
            truth.createIndex()
            found = truth.loadRes(np.concatenate(self._found))
            evaluated = evaluation(truth, found, "bbox")
            evaluated.evaluate()
            evaluated.accumulate()
            evaluated.summarize()
        ap, ap50, ap75 = (max(0.0, float(value)) for value in evaluated.stats[:3])
        loss = self._losses / max(1, self._images)
        return {"AP": ap, "AP50": ap50, "AP75": ap75, "loss": loss, "examples": self._images}


def _corner_and_sides(boxes: np.ndarray) -> np.ndarray:
    """Returns boxes ``[..., 4]`` by their left and upper edge, width and height."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def import_pycocotools() -> tuple[Any, Any]:
    """Returns the classes ``COCO`` and ``COCOeval``.

    Raises:
      InputError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise InputError(
            "detection takes pycocotools: pip install 'nfnets_jax[detection]'"
        ) from error
    return COCO, COCOeval
