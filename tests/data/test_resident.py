import dataclasses

import jax
import numpy as np
import pytest

from experiments.cifar10.augmentation import AlternatingFlip
from nfnets_jax.data.augmentation import Augmentation, Augmented
from nfnets_jax.data.batch_context import BatchContext
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.pipeline import train_batches
from nfnets_jax.data.resident import ResidentImages, ResidentReader, Stride, obstacle
from nfnets_jax.data.sources import Source
from tests.data.fake_sources import Files, numbered

AUGMENTATIONS = {
    "whole": Augmentation(8, "pad"),
    "flip": Augmentation(8, "pad", flip=True),
    "shift": Augmentation(8, "pad", padding=2),
    "both": Augmentation(8, "pad", padding=3, flip=True),
    "reflect": AlternatingFlip(8, "pad", padding=2, reflect=True, flip=True),
}
make = jax.jit(Stride.batch)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_batches_are_those_of_the_host(augmentation: Augmentation) -> None:
    """The first of two hosts, two devices; 37 records are prime to the batch of 12."""
    devices = jax.devices()[:2]
    batches = train_batches(numbered(37), augmentation, 12, 3, 0, 2)
    reader = ResidentReader(ResidentImages(batches), devices, start=1, longest_stride=4)
    position = 1
    for count in (4, 1, 3):
        unreadable, stride = reader.take(count)
        assert unreadable == []
        assert stride.count.tolist() == [[count]] * 2
        for index in range(count):
            parts = [
                make(jax.tree.map(lambda array, d=device: array[d], stride), index)
                for device in range(2)
            ]
            expected = batches[position + index]
            for name in ("image", "label"):
                actual = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(actual, expected[name])
        position += count
    assert reader.position == position


def test_hosts_draw_their_parts() -> None:
    draws = []
    for host in range(3):
        images = ResidentImages(train_batches(numbered(37), AUGMENTATIONS["both"], 12, 3, host, 3))
        draws.append(images.draw(2, 5, 5))
    whole = ResidentImages(train_batches(numbered(37), AUGMENTATIONS["both"], 12, 3)).draw(2, 5, 5)
    np.testing.assert_array_equal(np.concatenate(draws), whole)


def test_shapes_are_those_of_what_is_held() -> None:
    images = ResidentImages(train_batches(numbered(5), AUGMENTATIONS["both"], 4, 0))
    _, stride = ResidentReader(images, jax.devices()[:2], longest_stride=3).take(2)
    shapes = images.shapes(examples=2, longest=3)
    for ours, theirs in zip(jax.tree.leaves(shapes), jax.tree.leaves(stride), strict=True):
        assert ((2, *ours.shape), ours.dtype) == (theirs.shape, theirs.dtype)
    assert images.bytes == 2 * 5 * 14 * 14 * 3


@dataclasses.dataclass(frozen=True)
class Darker(Augmentation):
    def augment(self, images: np.ndarray, batch: BatchContext) -> Augmented:
        return super().augment(images // 2, batch)


@pytest.mark.parametrize(
    ("source", "augmentation", "reason"),
    [
        (Files(12, set()), Augmentation(8, "pad"), "the training images are not one array in"),
        (numbered(12), Augmentation(8), "the augmentation does more than shift and flip whole"),
        (numbered(12), Augmentation(8, "pad", mixing=Mixing(0.2)), "the augmentation does more"),
        (numbered(12), Augmentation(8, "pad", randaugment_layers=1), "the augmentation does more"),
        (numbered(12), Darker(8, "pad"), "the augmentation does more"),
        (numbered(12), Augmentation(16, "pad"), "the images of 8x8 pixels are resized to 16"),
    ],
)
def test_what_the_devices_cannot_make_is_named(
    source: Source, augmentation: Augmentation, reason: str
) -> None:
    assert obstacle(train_batches(source, augmentation, 4, 0)).startswith(reason)
    assert obstacle(train_batches(numbered(12), AUGMENTATIONS["reflect"], 4, 0)) == ""
