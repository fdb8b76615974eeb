import contextlib

import numpy as np
import pytest

from experiments.cifar10.augmentation import AlternatingFlip
from nfnets_jax.data.pipeline import train_batches
from nfnets_jax.data.reader import Reader
from nfnets_jax.data.sources import ArraySource


@pytest.mark.parametrize("workers", [0, 1])
def test_each_image_is_flipped_in_every_other_epoch(workers: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    batches = train_batches(
        ArraySource(images, np.arange(40)), AlternatingFlip(8, "pad", flip=True), 8, seed=0
    )
    flipped = np.empty((4, 40), bool)
    with contextlib.closing(Reader(batches, num_workers=workers)) as reader:
        for place in range(0, 160, 8):
            batch = next(reader)
            for i, (image, label) in enumerate(zip(batch["image"], batch["label"], strict=True)):
                unchanged = np.array_equal(image, images[label])
                assert unchanged or np.array_equal(image, images[label][:, ::-1])
                flipped[(place + i) // 40, label] = not unchanged
    assert 10 < flipped[0].sum() < 30
    for epoch in range(1, 4):
        assert (flipped[epoch] != flipped[epoch - 1]).all()
