"""Trains the networks of a search, a population of each; resumes, and shows the time left."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nfnets_jax.data.keyed_augmentation import KeyedAugmentation
from nfnets_jax.data.sources import ArraySource, Dataset
from nfnets_jax.models.registry import Model

from .. import population
from ..pure_run import Run, Task
from ..studies import grid

_SHARE_HELD_OUT = 10  # One of ten training images.
_RMSPROP_DECAY, _SGD_DECAY = 1e-5, 5e-4


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
      name: of its own, in tables and files.
      config: its options.
      size: side of its images in pixels.
      rmsprop: whether it is trained by RMSProp, and not by SGD.
    """

    name: str
    config: Any
    size: int
    rmsprop: bool = False


class Member(NamedTuple):
    """A run: a network, its learning rate for a batch of 256, AGC's threshold, and the seed."""

    network: Network
    learning_rate: float
    clipping: float = 0.0
    seed: int = 0


class Trainer:
    """Trains networks on images of any size, and keeps the results of all stages.

    Args:
      workdir: where results are kept, and found again.
      conditions: settings that all runs of the search share, as JSON types.
      dataset: images in memory; a tenth of the training images is held out to choose by.
      batch_size: images of a step.
      flips: whether a mirrored image keeps its class.
      epochs: of all runs of the search, about, of which the time left is estimated.
    """

    def __init__(
        self,
        workdir: Path,
        conditions: grid.Settings,
        dataset: Dataset,
        batch_size: int,
        flips: bool,
        epochs: float,
    ):
        self._workdir = workdir
        self._conditions = conditions
        self._held_out = dataset.hold_out(len(dataset.train) // _SHARE_HELD_OUT)
        self._dataset = dataset
        self._batch_size = batch_size
        self._flips = flips
        self._epochs = epochs
        self._sized: dict[tuple[bool, int], Dataset] = {}
        self._rows: dict[str, grid.Row] = {}

    @property
    def rows(self) -> list[grid.Row]:
        """Settings and figures of the runs so far."""
        return list(self._rows.values())

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self._dataset.channels

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._dataset.class_names)

    def measure(
        self,
        stage: str,
        names: Sequence[Any],
        run: Callable[[grid.Settings], Mapping[str, Any]],
    ) -> list[grid.Row]:
        """Measures something else of each network, and keeps it as ``train`` keeps its results.

        Args:
          stage: of the search, for people.
          names: of the networks, or their numbers; ``run`` finds them under ``"network"``.
          run: returns the figures of one, as JSON types.
        """
        self._announce(stage, f"{len(names)} networks")
        members = [{"stage": stage, "network": name} for name in names]
        return grid.run_grid(self._workdir, self._conditions, members, run)

    def train(
        self, stage: str, members: Sequence[Member], epochs: float, tests: bool = False
    ) -> list[grid.Row]:
        """Trains and evaluates runs that the directory has no results of yet.

        Args:
          stage: of the search, for people; its runs are kept under this name.
          members: the runs, all different.
          epochs: length of each.
          tests: whether to train on all training images and evaluate on the test images, and not
            on the held-out training images.

        Returns:
          One row per run, in their order: ``top1`` is None if the run diverged.
        """
        own = {_file(stage, member, epochs, tests): member for member in members}

        def run(chunk: Sequence[grid.Settings]) -> list[dict[str, Any]]:
            some = [own[grid.file_name(settings)] for settings in chunk]
            outcomes = self._outcomes(some, epochs, tests)
            return [{"top1": o.top1, "diverged_at": o.diverged_at} for o in outcomes]

        self._announce(stage, f"{len(members)} runs of {epochs:g} epochs")
        chunks = [
            [_settings(stage, member, epochs, tests) for member in chunk]
            for chunk in self._chunks(members, epochs, tests)
        ]
        found = grid.run_chunks(self._workdir, self._conditions, chunks, run)
        files = [grid.file_name(settings) for chunk in chunks for settings in chunk]
        by_file = dict(zip(files, found, strict=True))
        self._rows |= by_file
        return [by_file[_file(stage, member, epochs, tests)] for member in members]

    def task(self, network: Network, epochs: float, tests: bool = False) -> Task:
        """Returns what all runs of a network have in common."""
        dataset = self._images(network.size, tests)
        steps = max(1, round(epochs * len(dataset.train) / self._batch_size))
        return Task(
            Model(network.name, self.classes, network.config, "tensorfloat32"),
            self._batch_size,
            steps,
            warmup_steps=steps // 10,
            label_smoothing=0.1,
            augmentation=KeyedAugmentation(shift=network.size // 8, flip=self._flips),
            rmsprop=network.rmsprop,
        )

    def _announce(self, stage: str, what: str) -> None:
        done = sum(row["epochs"] for row in self.rows)
        left = ""
        if done:
            seconds = sum(row["seconds"] for row in self.rows) / done * (self._epochs - done)
            left = f"; about {max(0, seconds) / 60:.0f} min of the search are left"
        print(f"{stage}: {what}{left}", flush=True)

    def _chunks(
        self, members: Sequence[Member], epochs: float, tests: bool
    ) -> list[Sequence[Member]]:
        """Returns the runs that are made together.

        Runs of one network are a population. Networks with a single run are trained side by side,
        each on a device of its own.
        """
        together: list[Sequence[Member]] = []
        alone: list[Member] = []
        for network, some in itertools.groupby(members, key=lambda member: member.network):
            runs = list(some)
            size = population.at_once(self.task(network, epochs, tests))
            for chunk in grid.in_chunks(runs, size):
                if len(chunk) > 1:
                    together.append(chunk)
                else:
                    alone += chunk
        return together + grid.in_chunks(alone, jax.local_device_count())

    def _outcomes(
        self, members: Sequence[Member], epochs: float, tests: bool
    ) -> list[population.Outcome]:
        """Trains one population, or runs of different networks on as many devices."""
        devices = jax.local_devices()
        if len({member.network for member in members}) == 1:
            return self._population(members, epochs, tests, devices)
        with ThreadPoolExecutor(len(devices)) as threads:
            outcomes = threads.map(
                lambda member, device: self._population([member], epochs, tests, [device]),
                members,
                devices,
            )
            return [only for (only,) in outcomes]

    def _population(
        self,
        members: Sequence[Member],
        epochs: float,
        tests: bool,
        devices: Sequence[jax.Device],
    ) -> list[population.Outcome]:
        network = members[0].network
        decay = _RMSPROP_DECAY if network.rmsprop else _SGD_DECAY
        scale = self._batch_size / 256
        runs = [Run(m.seed, m.learning_rate * scale, m.clipping, decay) for m in members]
        task = self.task(network, epochs, tests)
        return population.train(task, self._images(network.size, tests), runs, devices)

    def _images(self, size: int, tests: bool) -> Dataset:
        key = tests, size
        if key not in self._sized:
            self._sized[key] = resized(self._dataset if tests else self._held_out, size)
        return self._sized[key]


def _file(stage: str, member: Member, epochs: float, tests: bool) -> str:
    return grid.file_name(_settings(stage, member, epochs, tests))


def _settings(stage: str, member: Member, epochs: float, tests: bool) -> dict[str, Any]:
    network, *numbers = member
    return {
        "stage": stage,
        "network": network.name,
        "size": network.size,
        "optimizer": "rmsprop" if network.rmsprop else "sgd",
        "epochs": epochs,
        "images": "test" if tests else "held out",
        **dict(zip(Member._fields[1:], numbers, strict=True)),
    }


def resized(dataset: Dataset, size: int) -> Dataset:
    """Returns images of ``size`` pixels a side, by cubic interpolation; smaller ones antialiased.

    Args:
      dataset: square images in memory.
      size: side in pixels.
    """
    test = None if dataset.test is None else _resized(dataset.test, size)
    return dataclasses.replace(dataset, train=_resized(dataset.train, size), test=test)


def _resized(source: Any, size: int) -> ArraySource:
    assert isinstance(source, ArraySource)
    if source.images.shape[1] == size:
        return source
    parts = []
    for start in range(0, len(source.images), 2000):  # Floats of all would fill the memory.
        images = source.images[start : start + 2000].astype(np.float32)
        shape = (len(images), size, size, images.shape[-1])
        pixels = np.asarray(jax.image.resize(images, shape, "cubic"))
        parts.append(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    return ArraySource(np.concatenate(parts), source.labels)
