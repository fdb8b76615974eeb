"""Images and the objects in them, scaled and moved to a square."""

import dataclasses

import cv2
import numpy as np

from .objects import BACKGROUND, Objects

# Gray, near the mean of photographs, beside the image.
_BESIDE = (124, 124, 124)
# Share of its area that an object needs inside of the square to be one there.
_LEAST_VISIBLE = 0.25


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where an image lies on a square: a point ``x`` comes to ``scale * x + left``.

    Attributes:
      size: side of the square, pixels.
      scale: of the image.
      left, top: position of the image's corner, pixels; the image may reach beyond the square.
      mirror: whether left and right of the square are exchanged.
    """

    size: int
    scale: float
    left: float
    top: float
    mirror: bool = False

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """Moves pixels ``[H, W, 3]`` uint8 to ``[size, size, 3]``."""
        # Bilinear interpolation reads four pixels, too few where an image shrinks by more than two.
        shrink = max(1, int(1 / self.scale))
        if shrink > 1:
            height, width = (max(1, side // shrink) for side in pixels.shape[:2])
            small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            factors = pixels.shape[1] / width, pixels.shape[0] / height
            return self._warp(small, cv2.INTER_LINEAR, _BESIDE, factors)
        return self._warp(pixels, cv2.INTER_LINEAR, _BESIDE)

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Moves labels of pixels ``[H, W]`` uint8 to ``[size, size]``; what is beside is none."""
        return self._warp(labels, cv2.INTER_NEAREST, (BACKGROUND,))

    def objects(self, objects: Objects) -> Objects:
        """Moves boxes, without those that end up outside; the masks stay where they are.

        A box is cut at the edges of the square. It is left out if less than a quarter of it stays.
        """
        moved = objects.boxes * self.scale + np.array([self.left, self.top] * 2, np.float32)
        if self.mirror:
            moved = np.stack(
                [self.size - moved[:, 2], moved[:, 1], self.size - moved[:, 0], moved[:, 3]], 1
            )
        cut = np.clip(moved, 0, self.size).astype(np.float32)
        kept = areas(cut) >= np.maximum(_LEAST_VISIBLE * areas(moved), 1e-6)
        classes, crowd = objects.classes[kept], objects.crowd[kept]
        return Objects(cut[kept], classes, crowd, (self.size, self.size), None)

    def back(self, boxes: np.ndarray) -> np.ndarray:
        """Returns where boxes ``[..., 4]`` of the square lie in the image; it must not mirror."""
        assert not self.mirror
        return (boxes - np.array([self.left, self.top] * 2)) / self.scale

    def labels_back(self, labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Returns the labels ``[H, W]`` of an image's own pixels; the inverse of ``labels``."""
        assert not self.mirror
        height, width = shape
        matrix = cv2.invertAffineTransform(self._matrix((1.0, 1.0)))
        return cv2.warpAffine(labels, matrix, (width, height), flags=cv2.INTER_NEAREST)

    def _warp(
        self,
        pixels: np.ndarray,
        interpolation: int,
        beside: tuple[int, ...],
        factors: tuple[float, float] = (1.0, 1.0),
    ) -> np.ndarray:
        matrix = self._matrix(factors)
        square = cv2.warpAffine(
            pixels, matrix, (self.size, self.size), flags=interpolation, borderValue=beside
        )
        return np.ascontiguousarray(square[:, ::-1]) if self.mirror else square

    def _matrix(self, factors: tuple[float, float]) -> np.ndarray:
        """Returns the matrix ``[2, 3]`` that moves pixels, which are ``factors`` wide and high."""
        scales = self.scale * np.array(factors)
        # OpenCV counts from the centres of pixels, half a pixel from their edges.
        offsets = np.array([self.left, self.top]) + scales / 2 - 0.5
        return np.column_stack([np.diag(scales), offsets])


def areas(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas ``[K]`` of boxes ``[K, 4]``."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def fit(height: int, width: int, size: int) -> Placement:
    """Returns the placement of a whole image in the middle of the square."""
    scale = size / max(height, width)
    return Placement(size, scale, (size - scale * width) / 2, (size - scale * height) / 2)


@dataclasses.dataclass(frozen=True)
class Jitter:
    """A random placement: scale jitter, a crop or a margin, and mirroring.

    Large-scale jitter of Ghiasi et al. 2021, arXiv:2012.07177, section 4, in a range of one's own.

    Attributes:
      size: side of the square, pixels.
      scales: smallest and largest factor of the scale at which the image just fits.
      flip: whether half of the images are mirrored.
    """

    size: int
    scales: tuple[float, float]
    flip: bool

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Placement:
        """Draws the placement of an image."""
        scale = self.size / max(height, width) * rng.uniform(*self.scales)
        left, top = rng.uniform(size=2) * (self.size - scale * np.array([width, height]))
        return Placement(self.size, scale, left, top, self.flip and rng.random() < 0.5)
