"""When the loss or the gradient is no number any more: finding it and telling of it."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nfnets_jax.training import hosts, reporting

ANSWERS = ("stop", "skip")
_HISTORY = 100
_TOLD_PARAMETERS = 20


class Diverged(FloatingPointError):  # noqa: N818, it is what happened
    """Loss or gradient are not finite.

    Attributes:
      step: the first at which they were not.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Watch:
    """Looks at each step's loss and gradient norm, and remembers the last hundred."""

    def __init__(self) -> None:
        self._history: deque[dict[str, float]] = deque(maxlen=_HISTORY)

    def first_divergence(self, first: int, steps: Sequence[Mapping[str, float]]) -> int | None:
        """The first of some steps whose figures are not finite, None if all are.

        Args:
          first: number of the first step.
          steps: ``loss`` and ``grad_norm`` of each, among others.
        """
        for step, figures in enumerate(steps, first):
            told = {name: float(figures[name]) for name in ("loss", "grad_norm")}
            self._history.append({"step": step, **told})
            if not all(math.isfinite(value) for value in told.values()):
                return step
        return None

    def report(
        self, workdir: Path, examples: Sequence[str], params: Mapping[str, Mapping[str, np.ndarray]]
    ) -> Diverged:
        """Writes ``divergence.json``; gives what to raise.

        It holds the step, the figures of up to a hundred steps before it, the names of its
        examples, and the parameters that are not finite or largest.
        """
        last = self._history[-1]
        step, file = int(last["step"]), workdir / "divergence.json"
        if hosts.is_first():
            # JSON has no NaN.
            history = [{name: _number(value) for name, value in h.items()} for h in self._history]
            report = {
                "step": step,
                "history": history,
                "examples": list(examples),
                "parameters": _worst(params),
            }
            reporting.write_json(file, report)
        return Diverged(
            f"the loss is {last['loss']} and the norm of the gradient {last['grad_norm']} at step "
            f"{step}: lower optimizer.base_learning_rate or optimizer.clipping; {file} tells more",
            step,
        )


def _worst(params: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Parameters that are not finite, in the network's order, and then the largest."""
    told: list[dict[str, Any]] = []
    for module, parameters in params.items():
        for name, array in parameters.items():
            finite = np.isfinite(array)
            largest = np.abs(array, where=finite, out=np.zeros_like(array)).max(initial=0)
            told.append(
                {
                    "name": f"{module}/{name}",
                    "not_finite": int(array.size - finite.sum()),
                    "of": int(array.size),
                    "largest": float(largest),
                }
            )
    told.sort(key=lambda parameter: (not parameter["not_finite"], -parameter["largest"]))
    return told[:_TOLD_PARAMETERS]


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
