"""Profiling of some steps of a run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from nfnets_jax.errors import InputError


def parse_steps(profile_steps: str) -> tuple[int, int] | None:
    """Parses a range of steps such as ``"10-20"``; an empty text is None.

    Raises:
      InputError: the text is not a range of positive numbers.
    """
    if not profile_steps:
        return None
    match = re.fullmatch(r"(\d+)-(\d+)", profile_steps)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < first <= last:
        raise InputError(
            f"profile_steps is {profile_steps!r}; it takes a first and a last step, such as 10-20"
        )
    return first, last


class Profiler:
    """Profiles the steps of a run from a first to a last one.

    The files are for TensorBoard's profile plugin and for Perfetto (``*.trace.json.gz``).
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, log: Callable[[str], None]):
        """Prepares to profile.

        Args:
          folder: where the files go.
          steps: first and last step; None for no profile.
          log: called with one line when the files are written.
        """
        self._folder, self._log = folder, log
        self._first, self._last = steps or (0, 0)
        self._running = False

    def borders(self, step: int) -> bool:
        """Returns whether the profile starts or ends after a step."""
        return step in (self._first - 1, self._last)

    def before_step(self, step: int) -> None:
        """Starts the profile at its first step."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after_step(self, step: int, results: Any) -> None:
        """Ends the profile at its last step, once the step's ``results`` are computed."""
        if self._running and step == self._last:
            jax.block_until_ready(results)
            self.close()
            self._log(f"profile of steps {self._first} to {self._last} in {self._folder}")

    def close(self) -> None:
        """Ends a profile that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
