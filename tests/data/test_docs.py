import re
from pathlib import Path

import numpy as np

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")


def test_the_example_of_an_augmentation_flips_the_images_of_odd_epochs() -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(compile(example, "example", "exec"), names)
    digits = names["open_dataset"]("digits").train
    unshifted = names["FlipOddEpochs"](size=8, crop="pad", flip=True)
    batches = names["train_batches"](digits, unshifted, len(digits), seed=0)
    for epoch in range(2):
        expected = digits.images[:, :, :: 1 - 2 * epoch]
        order = batches.examples.records(np.arange(len(digits)) + epoch * len(digits))
        np.testing.assert_array_equal(batches[epoch]["image"], expected[order])
