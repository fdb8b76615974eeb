"""Training steps, measured in turns with the anchor's, and a model of their time.

Times of training runs are never used: other programs and other runs share the processor then.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..pure_run import Images, PureRun, Run, Task
from .cost import Cost

_STEPS_AT_ONCE = 4  # A loop of steps, as training has it.


class Ratio(NamedTuple):
    """How long a network's step takes over the anchor's: the median of the turns, and extremes."""

    median: float
    low: float
    high: float


# A function that takes training steps, and returns their seconds.
Step = Callable[[], float]


def step_ratio(step: Step, anchor: Step, turns: int) -> Ratio:
    """Measures the training step of a network and that of the anchor in turns.

    Args:
      step, anchor: from ``training_step``.
      turns: pairs of measurements, after one that is not counted.
    """
    steps = (step, anchor)
    for each in steps:
        each()
    ratios = []
    for turn in range(turns):
        order = (0, 1) if turn % 2 else (1, 0)
        seconds = {place: steps[place]() for place in order}
        ratios.append(seconds[0] / seconds[1])
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def training_step(task: Task, channels: int) -> Step:
    """Returns a function that takes training steps on one device, and returns their seconds.

    Args:
      task: the network, whose configuration has the size of the images, and how it is trained.
      channels: of the images.
    """
    side = task.model.config.train_size
    rng = np.random.default_rng(0)
    count = _STEPS_AT_ONCE * task.batch_size
    images = rng.integers(0, 256, (count, side, side, channels), np.uint8)
    labels = rng.integers(0, task.model.num_classes, count, np.int32)
    device = jax.local_devices()[0]
    data = jax.device_put(Images(images, labels, images[:1], labels[:1]), device)
    # A rate of 0 keeps all numbers finite.
    run = jax.device_put(Run(np.uint32(0), np.float32(0), np.float32(0.01)), device)  # type: ignore[arg-type]
    pure = PureRun(task, (0.5,) * channels, (0.25,) * channels, _STEPS_AT_ONCE)
    state = jax.jit(pure.start)(run, data)
    first = jnp.int32(0)
    epoch: Any = jax.jit(pure.epoch).lower(run, data, state, first).compile()

    def step() -> float:
        start = time.perf_counter()
        jax.block_until_ready(epoch(run, data, state, first))
        return time.perf_counter() - start

    return step


class TimeModel(NamedTuple):
    """A power law of a step's time in the counts of ``Cost``, over the anchor's time.

    Attributes:
      exponents: of a constant and of each count.
      errors: ``|log(predicted / measured)|`` of each network by the law fitted to the others.
    """

    exponents: np.ndarray
    errors: np.ndarray

    def ratio(self, cost: Cost) -> float:
        """Returns the predicted time of a training step over the anchor's."""
        return float(np.exp(_terms([cost]) @ self.exponents)[0])

    def error_text(self) -> str:
        """Returns the median and the largest error, as factors."""
        middle, largest = np.exp([np.median(self.errors), np.max(self.errors)])
        return f"a factor of {middle:.2f} in the median, {largest:.2f} at most"


def fit_times(costs: Sequence[Cost], ratios: Sequence[float]) -> TimeModel:
    """Fits the power law by least squares of logarithms, and leaves each network out for its error.

    Args:
      costs: of the measured networks, at least two.
      ratios: measured times over the anchor's.
    """
    terms, logs = _terms(costs), np.log(ratios)
    errors = []
    for place in range(len(logs)):
        others = np.arange(len(logs)) != place
        law = _law(terms[others], logs[others])
        errors.append(abs(float(terms[place] @ law - logs[place])))
    return TimeModel(_law(terms, logs), np.array(errors))


def _terms(costs: Sequence[Cost]) -> np.ndarray:
    logs = np.log(np.array(costs, float))
    return np.concatenate([np.ones((len(logs), 1)), logs], axis=1)


def _law(terms: np.ndarray, logs: np.ndarray) -> np.ndarray:
    # Counts that hardly differ between the networks get an exponent near 0, and not a wild one.
    center = terms.mean(axis=0) * (np.arange(terms.shape[1]) > 0)
    slopes = np.linalg.lstsq(terms - center, logs, rcond=0.05)[0]
    slopes[0] -= center @ slopes
    return slopes
