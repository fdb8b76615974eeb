"""Flips every other epoch, by which CIFAR-10 is trained in few epochs."""

import dataclasses
import functools

import numpy as np

from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.batch_context import BatchContext


@dataclasses.dataclass(frozen=True)
class AlternatingFlip(Augmentation):
    """An augmentation that flips each image in every other epoch, instead of at random.

    Which images are flipped in the first epoch is random (Jordan 2024, arXiv:2404.00498, section
    3.6).
    """

    def flipped(self, batch: BatchContext) -> np.ndarray:
        """Chooses the images to flip, ``[B]`` booleans."""
        in_first_epoch = _first_flipped(batch.num_records, batch.seed)[batch.records]
        return in_first_epoch ^ (batch.epochs % 2 == 1)


@functools.lru_cache(maxsize=4)
def _first_flipped(num_records: int, seed: int) -> np.ndarray:
    """Chooses the records that are flipped in the first epoch, ``[num_records]`` booleans."""
    bits = np.random.Philox(key=np.array([seed, 2], np.uint64))
    return np.random.Generator(bits).random(num_records) < 0.5
