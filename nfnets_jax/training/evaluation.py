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
            experiment.model, experiment.dataset, devices=experiment.devices
        )
        max_share = experiment.config.data.max_unreadable
        images = len(experiment.dataset.test or ())
        self._read_errors = ReadErrors("test images", images, max_share, log)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Evaluates a replicated state on all test images.

        Returns:
          Means ``loss``, ``top1`` and ``top5``, with the prefix ``ema_`` those of the moving
          average, the number of ``examples``, and the number of ``unreadable`` images so far. A
          moving average with a decay of 0 equals the parameters and is not evaluated again.

        Raises:
          InputError: too many test images cannot be read.
        """
        candidates = {"": (state.params, state.model_state)}
        if self._experiment.config.ema_decay:
            averaged = state.ema_model_state
            statistics = state.model_state if averaged is None else averaged
            candidates["ema_"] = state.ema_params, statistics
        totals: dict[str, float] = {}
        with contextlib.closing(self._experiment.read(self._batches, 0, self._log)) as batches:
            for unreadable, batch in batches:
                self._read_errors.add(unreadable)
                for prefix, (params, model_state) in candidates.items():
                    sums = fetch(self._evaluate(params, model_state, batch))
                    for name, value in sums.items():
                        totals[prefix + name] = totals.get(prefix + name, 0.0) + float(value)
        examples = totals.pop("examples")
        totals.pop("ema_examples", None)
        means = {name: total / examples for name, total in totals.items()}
        if not self._experiment.config.ema_decay:
            means |= {f"ema_{name}": mean for name, mean in means.items()}
        return means | {"examples": examples, "unreadable": len(self._read_errors.messages)}
