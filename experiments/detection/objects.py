"""Objects in an image: boxes, classes and masks, as images of theirs are labelled."""

from typing import NamedTuple

import numpy as np

# Labels of pixels: the background, class ``k`` as ``k + 1``, and pixels that do not count.
BACKGROUND, IGNORED = 0, 255


class Objects(NamedTuple):
    """The objects in an image; the label of its record.

    Attributes:
      boxes: ``[K, 4]`` float32, left, top, right and bottom edge in pixels.
      classes: ``[K]`` int32.
      crowd: ``[K]`` booleans, whether a region holds many objects that nobody told apart.
      shape: height and width of the image.
      masks: ``[K, H, W]`` booleans; None where only boxes are read.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    shape: tuple[int, int]
    masks: np.ndarray | None

    def class_map(self) -> np.ndarray:
        """Returns the label of each pixel, ``[H, W]`` uint8; smaller objects lie on larger ones."""
        assert self.masks is not None
        labels = np.full(self.masks.shape[1:], BACKGROUND, np.uint8)
        for k in np.argsort(-self.masks.sum((1, 2)), kind="stable"):
            labels[self.masks[k]] = IGNORED if self.crowd[k] else self.classes[k] + 1
        return labels


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Returns the boxes ``[K, 4]`` float32 around masks ``[K, H, W]``, none of them empty."""
    edges = []
    for axis in (1, 2):  # Over rows, for the columns; then the other way.
        filled: np.ndarray = np.any(masks, axis=axis)
        length = filled.shape[1]
        edges.append((filled.argmax(1), length - filled[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = edges
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32).reshape(-1, 4)
