"""The task of a run: what a network learns, as the runner needs to know it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from nfnets_jax.data.decoding import Reading
from nfnets_jax.data.pipeline import Batches
from nfnets_jax.data.read_errors import check_readable
from nfnets_jax.data.sources import Dataset
from nfnets_jax.devices import DeviceBatch
from nfnets_jax.errors import InputError, nearest
from nfnets_jax.models.registry import Model
from nfnets_jax.training.finetuning import Pretrained

Metrics = dict[str, jax.Array]
Outputs = Mapping[str, jax.Array]


class Score(NamedTuple):
    """The metric by which networks are ranked: the higher, the better.

    Attributes:
      name: its key among the metrics.
      label: what people call it.
    """

    name: str
    label: str


class Meter(Protocol):
    """What becomes of the figures of all test batches."""

    def add(self, figures: Mapping[str, np.ndarray]) -> None:
        """Adds what ``Task.evaluate`` returned for a batch."""

    def result(self) -> dict[str, float]:
        """Returns the metrics: ``loss``, the score, ``examples``, and whatever else there is."""
        ...


class Task(Protocol):
    """A kind of data, the network for it, its loss and its metrics.

    A batch is a mapping of arrays with one entry an example. It has ``image`` ``[N, H, W, C]`` and
    ``label`` ``[N, ...]``, and for testing ``mask`` ``[N]``, 0 where an example only fills the
    batch. What else it has, and what a label is, are the task's own.
    """

    @property
    def score(self) -> Score:
        """The test metric that ranks checkpoints."""
        ...

    def create_model(self, config: ConfigDict, num_classes: int) -> Model:
        """Creates the network.

        Raises:
          InputError: the configuration has a value that it does not take.
        """
        ...

    def open_dataset(self, config: ConfigDict) -> Dataset:
        """Opens the data.

        Raises:
          InputError: they cannot be read, or are not such as the task learns from.
        """
        ...

    def train_batches(
        self, config: ConfigDict, dataset: Dataset, devices: Sequence[jax.Device]
    ) -> Batches:
        """Returns this host's parts of the training batches, without end."""
        ...

    def test_batches(self, config: ConfigDict, dataset: Dataset) -> Batches | None:
        """Returns this host's parts of the test batches; None if there are no test images."""
        ...

    def load_initial_weights(
        self, config: ConfigDict, dataset: Dataset, model: Model
    ) -> Pretrained:
        """Loads the weights that ``config.init`` names."""
        ...

    def losses(self, outputs: Outputs, batch: DeviceBatch, label_smoothing: float) -> Metrics:
        """Computes metrics ``[N]`` of training examples, of which ``loss`` is minimized.

        Each is of one example alone, so that a step does not depend on the number of devices.
        """
        ...

    def evaluate(self, outputs: Outputs, batch: DeviceBatch) -> Metrics:
        """Computes what a ``Meter`` adds up, equal on all devices of the axis ``devices.AXIS``."""
        ...

    def meter(self, dataset: Dataset) -> Meter:
        """Makes an empty ``Meter`` of the test images."""
        ...


_TASKS: dict[str, Task] = {}


def register_task(name: str, task: Task) -> None:
    """Makes a task a value of the configuration's ``task.name``; replaces one of that name."""
    _TASKS[name] = task


def find_task(name: str) -> Task:
    """Returns the task of this name.

    Raises:
      InputError: no task has it.
    """
    if name not in _TASKS:
        raise InputError(f"no task {name!r}; {nearest(name, _TASKS)}")
    return _TASKS[name]


def reading_of(config: ConfigDict) -> Reading:
    """Returns how a run's image files are read."""
    data = config.data
    return Reading(data.max_pixels, data.upright, data.decoder)


def hold_out_and_check(dataset: Dataset, config: ConfigDict) -> Dataset:
    """Holds out ``data.holdout`` training images for evaluation, and reads a few images.

    Raises:
      InputError: there are fewer training images, or those that are tried cannot be read.
    """
    if config.data.holdout:
        dataset = dataset.hold_out(config.data.holdout)
    for source in filter(None, (dataset.train, dataset.test)):
        check_readable(source, reading=reading_of(config))
    return dataset


class MeanMeter:
    """Averages sums over examples."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}

    def add(self, figures: Mapping[str, np.ndarray]) -> None:
        """Adds the sums over a batch: scalars, with the number of ``examples`` among them."""
        for name, value in figures.items():
            self._totals[name] = self._totals.get(name, 0.0) + float(value)

    def result(self) -> dict[str, float]:
        """Returns the means over all examples, and their number."""
        examples = self._totals["examples"]
        means = {
            name: total / examples for name, total in self._totals.items() if name != "examples"
        }
        return means | {"examples": examples}
