"""Datasets that need no files: scikit-learn's handwritten digits, and synthetic patterns."""

import dataclasses

import numpy as np

from nfnets_jax.data.sources.source import ArraySource, Record, Splits

_SYNTHETIC_CLASSES = 10


def open_digits() -> Splits:
    """Opens scikit-learn's 1,797 digits of 8x8 gray pixels; the same 360 are always for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    return Splits(
        ArraySource(images[train], digits.target[train]),
        ArraySource(images[test], digits.target[test]),
        tuple(str(name) for name in digits.target_names),
    )


def open_synthetic(size: int) -> Splits:
    """Opens 2048 synthetic images of ``size`` pixels to train on and 512 to test on."""
    names = tuple(f"pattern {label}" for label in range(_SYNTHETIC_CLASSES))
    return Splits(SyntheticSource(2048, size, seed=0), SyntheticSource(512, size, seed=1), names)


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Noise over one of ten fixed patterns, so that there is something to learn.

    An image depends on the seed and its position alone.

    Attributes:
      length: number of images.
      size: side of the images, pixels.
      seed: seed of the noise.
    """

    length: int
    size: int
    seed: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        label = index % _SYNTHETIC_CLASSES
        waves = np.random.default_rng(label).uniform(-2, 2, (3, 2))
        grid = np.linspace(0, np.pi, self.size, dtype=np.float32)
        phase = grid[:, None, None] * waves[:, 0] + grid[None, :, None] * waves[:, 1]
        noise = np.random.default_rng((self.seed, index)).standard_normal(phase.shape, np.float32)
        image = 127.5 + 45 * np.sin(phase) + 45 * noise
        return Record(
            image=np.clip(image, 0, 255).astype(np.uint8), label=label, name=f"synthetic {index}"
        )
