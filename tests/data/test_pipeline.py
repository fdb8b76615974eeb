import contextlib
import dataclasses

import numpy as np
import pytest

from nfnets_jax.data import pipeline
from nfnets_jax.data.augmentation import Augmentation
from nfnets_jax.data.mixing import Mixing
from nfnets_jax.data.reader import Reader
from nfnets_jax.data.transforms import CenterCrop
from nfnets_jax.errors import InputError
from tests.data.fake_sources import Files, numbered

AUGMENTATION = Augmentation(
    8,
    flip=True,
    mixing=Mixing(0.2, True),
    randaugment_layers=2,
    randaugment_magnitude=5,
)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    ("processes", "mixtures", "repeats"),
    [(2, 2, 1), (3, 2, 1), (8, 2, 1), (3, 1, 1), (8, 1, 2)],
)
def test_any_number_of_processes_loads_the_same_batches(
    processes: int, mixtures: int, repeats: int, on_device: bool
) -> None:
    """The number of records is prime to the batch, so that batches cross the ends of epochs."""
    source = numbered(37, size=9)
    augmentation = dataclasses.replace(
        AUGMENTATION, mixing=Mixing(0.2, True, mixtures), on_device=on_device
    )
    whole, *parts = (
        pipeline.train_batches(source, augmentation, 48, 0, i, count, repeats=repeats)
        for count in (1, processes)
        for i in range(count)
    )
    assert ("randaugment" in whole[0]) == on_device
    labels: list[int] = []
    for index in range(37):
        batches = [part[index] for part in parts]
        for name, array in whole[index].items():
            joined = np.concatenate([batch[name] for batch in batches])  # type: ignore[literal-required]
            np.testing.assert_array_equal(joined, array)
        for batch in batches:
            own_images = [batch["label"], batch["other_label"]][: 3 - mixtures]  # type: ignore[typeddict-item]
            labels += np.stack(own_images, axis=1).ravel().tolist()
    if repeats == 1:
        for epoch in np.reshape(labels, (-1, 37)):
            assert sorted(epoch) == list(range(37))
    else:
        assert set(np.bincount(labels)) == {len(labels) // 37}


@pytest.mark.parametrize(("length", "processes"), [(20, 1), (21, 2), (22, 3), (21, 8), (3, 8)])
def test_evaluation_counts_every_record_once(length: int, processes: int) -> None:
    seen, counts = [], set()
    for process in range(processes):
        batches = pipeline.eval_batches(numbered(length), CenterCrop(8), 3, 24, process, processes)
        with contextlib.closing(Reader(batches)) as reader:
            parts = list(reader)
        counts.add(len(parts))
        for part in parts:
            seen += list(part["label"][part["mask"] == 1])
    assert sorted(seen) == list(range(length))
    assert counts == {1}


def test_names_are_those_of_the_loaded_records() -> None:
    for process in range(2):
        batches = pipeline.train_batches(Files(12, set()), Augmentation(8, "pad"), 8, 0, process, 2)
        for index in range(3):
            expected = [f"file {label}" for label in batches[index]["label"]]
            assert batches.names(index) == expected
    batches = pipeline.eval_batches(Files(6, {2}), CenterCrop(8), 3, 8)
    assert batches.names(0) == [f"file {index}" for index in range(6)]


def test_a_batch_that_splits_a_pair_is_refused() -> None:
    twice = dataclasses.replace(AUGMENTATION, mixing=Mixing(0.2, mixtures_per_pair=2))
    with pytest.raises(
        InputError,
        match="batch_size 18 cannot be split over 2 processes in groups of 2 .* a multiple of 4",
    ):
        pipeline.train_batches(numbered(50), twice, 18, 0, 0, 2)
    with pytest.raises(InputError, match=r"batch_size 18 .* in groups of 8 .* a multiple of 8"):
        pipeline.train_batches(numbered(50), twice, 18, 0, repeats=4)
    with pytest.raises(InputError, match="repeats is 0; it takes a whole number from 1 on"):
        pipeline.train_batches(numbered(50), twice, 18, 0, repeats=0)
