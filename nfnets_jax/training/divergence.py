"""Divergence: detecting a loss or gradient that is not finite, and reporting its circumstances."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nfnets_jax.training import hosts, reporting

_HISTORY_STEPS = 100
_REPORTED_PARAMETERS = 20


class Diverged(FloatingPointError):  # noqa: N818, an event and not a mistake
    """The loss or the gradient is not finite.

    Attributes:
      step: the first step at which it was not.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class DivergenceMonitor:
    """Checks the loss and the gradient norm of every step, and keeps those of the last hundred."""

    def __init__(self) -> None:
        self._history: deque[dict[str, float]] = deque(maxlen=_HISTORY_STEPS)

    def first_divergence(self, first: int, steps: Sequence[Mapping[str, float]]) -> int | None:
        """Returns the first of several steps whose metrics are not finite, or None.

        Args:
          first: number of the first step.
          steps: the metrics of each step, with ``loss`` and ``grad_norm``.
        """
        for step, metrics in enumerate(steps, first):
            values = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
            self._history.append({"step": step, **values})
            if not all(map(math.isfinite, values.values())):
                return step
        return None

    def report(
        self, workdir: Path, examples: Sequence[str], params: Mapping[str, Mapping[str, np.ndarray]]
    ) -> Diverged:
        """Writes ``divergence.json`` about the step that ``first_divergence`` returned.

        The file holds the step, the metrics of up to a hundred steps, the names of the step's
        examples, and the parameters that are not finite or the largest.

        Args:
          workdir: folder of the run.
          examples: names of the images of the step.
          params: parameters after it.

        Returns:
          The exception to raise.
        """
        last = self._history[-1]
        step, file = int(last["step"]), workdir / "divergence.json"
        if hosts.is_first():
            # JSON has no NaN.
            history = [
                {name: v if math.isfinite(v) else str(v) for name, v in metrics.items()}
                for metrics in self._history
            ]
            report = {
                "step": step,
                "history": history,
                "examples": list(examples),
                "parameters": _suspicious_parameters(params),
            }
            reporting.write_json(file, report)
        return Diverged(
            f"the loss is {last['loss']} and the gradient norm {last['grad_norm']} at step {step}: "
            f"lower the learning rate or the clipping threshold; details are in {file}",
            step,
        )


def _suspicious_parameters(params: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Lists the parameters that are not finite, in the network's order, and then the largest."""
    parameters: list[dict[str, Any]] = []
    for module, arrays in params.items():
        for name, array in arrays.items():
            finite = np.isfinite(array)
            largest = np.abs(array, where=finite, out=np.zeros_like(array)).max(initial=0)
            parameters.append(
                {
                    "name": f"{module}/{name}",
                    "not_finite": int(array.size - finite.sum()),
                    "of": int(array.size),
                    "largest": float(largest),
                }
            )
    parameters.sort(key=lambda parameter: (not parameter["not_finite"], -parameter["largest"]))
    return parameters[:_REPORTED_PARAMETERS]
