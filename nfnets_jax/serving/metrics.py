"""Accuracy, calibration and confusion of a classifier."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class Accuracy:
    """Top-1, top-5, calibration and confusion over examples that are added batch by batch.

    Attributes:
      num_classes: of the classifier.
      bins: number of equally wide bins of confidence for the calibration error.
      confusion: ``[num_classes, num_classes]`` int64, the number of examples by true and predicted
        class.
    """

    num_classes: int
    bins: int = 15

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        self._right5 = 0
        self._in_bin = np.zeros(self.bins, np.int64)
        self._bin_confidence = np.zeros(self.bins)
        self._bin_right = np.zeros(self.bins)

    def add(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Adds examples.

        Args:
          probabilities: ``[N, num_classes]``.
          labels: ``[N]`` integers.
        """
        # Equal probabilities rank by their place.
        ranking = np.argsort(-probabilities, axis=1, kind="stable")
        hits = ranking == labels[:, None]
        np.add.at(self.confusion, (labels, ranking[:, 0]), 1)
        self._right5 += int(hits[:, :5].sum())
        confidence = probabilities.max(axis=1)
        # Bins are open below and closed above.
        bin_of = np.clip(np.ceil(confidence * self.bins).astype(int) - 1, 0, self.bins - 1)
        np.add.at(self._in_bin, bin_of, 1)
        np.add.at(self._bin_confidence, bin_of, confidence)
        np.add.at(self._bin_right, bin_of, hits[:, 0])

    @property
    def examples(self) -> int:
        """Number of examples added."""
        return int(self.confusion.sum())

    def summary(self) -> dict[str, Any]:
        """Returns ``examples``, ``top1``, ``top5`` and ``ece``, as fractions of 1.

        The expected calibration error is the mean over examples of the distance between their
        bin's mean confidence and its accuracy (Guo et al. 2017, arXiv:1706.04599, section 2).
        """
        count = max(1, self.examples)
        return {
            "examples": self.examples,
            "top1": float(self.confusion.trace() / count),
            "top5": float(self._right5 / count),
            "ece": float(np.abs(self._bin_confidence - self._bin_right).sum() / count),
        }

    def per_class(self) -> dict[int, tuple[float, int]]:
        """Returns top-1 and the number of examples, for each class that has any."""
        return {
            label: (right / examples, examples)
            for label, (right, examples) in enumerate(
                zip(self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
            )
            if examples
        }
