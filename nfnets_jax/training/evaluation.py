"""Evaluation on all test images."""

import contextlib
from collections.abc import Callable

from nfnets_jax.data.pipeline import Batches
from nfnets_jax.data.read_errors import ReadErrors
from nfnets_jax.devices import fetch
from nfnets_jax.training.experiment import Experiment
from nfnets_jax.training.step import TrainState, make_evaluate


class Evaluator:
    """Evaluates the parameters of a state and their moving average."""

    def __init__(self, experiment: Experiment, batches: Batches, log: Callable[[str], None]):
        """Prepares to evaluate.

        Args:
          experiment: the experiment.
          batches: its test batches.
          log: called with one line for each image that cannot be read.
        """
        self._experiment, self._batches, self._log = experiment, batches, log
        self._evaluate = make_evaluate(
            experiment.model,
            experiment.dataset,
            devices=experiment.devices,
            task=experiment.task,
        )
        max_share = experiment.config.data.max_unreadable
        images = len(experiment.dataset.test or ())
        self._read_errors = ReadErrors("test images", images, max_share, log)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Evaluates a replicated state on all test images.

        Returns:
          The task's metrics, with the prefix ``ema_`` those of the moving average, the number of
          ``examples``, and the number of ``unreadable`` images so far. A moving average with a
          decay of 0 equals the parameters and is not evaluated again.

        Raises:
          InputError: too many test images cannot be read.
        """
        experiment = self._experiment
        candidates = {"": (state.params, state.model_state)}
        if experiment.config.ema_decay:
            averaged = state.ema_model_state
            statistics = state.model_state if averaged is None else averaged
            candidates["ema_"] = state.ema_params, statistics
        meters = {prefix: experiment.task.meter(experiment.dataset) for prefix in candidates}
        with contextlib.closing(experiment.read(self._batches, 0, self._log)) as batches:
            for unreadable, batch in batches:
                self._read_errors.add(unreadable)
                for prefix, (params, model_state) in candidates.items():
                    meters[prefix].add(fetch(self._evaluate(params, model_state, batch)))
        metrics = {prefix: meter.result() for prefix, meter in meters.items()}
        metrics.setdefault("ema_", metrics[""])
        examples = metrics[""]["examples"]
        named = {
            prefix + name: value
            for prefix, found in metrics.items()
            for name, value in found.items()
            if name != "examples"
        }
        return named | {"examples": examples, "unreadable": len(self._read_errors.messages)}
