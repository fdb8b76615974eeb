import re
from pathlib import Path

import numpy as np

from nfnets_jax.data.sources import open_dataset

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_of_images_from_python_is_a_dataset() -> None:
    [example, _] = EXAMPLES
    exec(compile(example, "example", "exec"), {})
    dataset = open_dataset("shapes")
    assert dataset.class_names == ("circle", "square")
    assert dataset.train[1]["image"] == Path("square.png")


def test_the_example_of_an_augmentation_flips_the_images_of_odd_epochs() -> None:
    [_, example] = EXAMPLES
    names: dict = {}
    exec(compile(example, "example", "exec"), names)
    digits = names["open_dataset"]("digits").train
    unshifted = names["FlipOddEpochs"](size=8, crop="pad", flip=True)
    batches = names["train_batches"](digits, unshifted, len(digits), seed=0)
    for epoch in range(2):
        expected = digits.images[:, :, :: 1 - 2 * epoch]
        order = batches.examples.records(np.arange(len(digits)) + epoch * len(digits))
        np.testing.assert_array_equal(batches[epoch]["image"], expected[order])
