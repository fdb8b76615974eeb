"""A profile of some steps of a run: what the devices and the host did, and when."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from nfnets_jax.errors import InputError


def parse_steps(text: str) -> tuple[int, int] | None:
    """``"10-20"`` as its first and last step; None for nothing.

    Raises:
      InputError: it is no such range.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < first <= last:
        raise InputError(f"--profile_steps is {text!r}; it takes a first and a last step, as 10-20")
    return first, last


class Profile:
    """Profiles the steps of a run from a first to a last one.

    The files are for TensorBoard's profile plugin, and for Perfetto (``*.trace.json.gz``).
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, tell: Callable[[str], None]):
        self._folder, self._tell = folder, tell
        self._first, self._last = steps or (0, 0)
        self._open = False

    def before(self, step: int) -> None:
        """To be called before a step is begun."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._open = True

    def after(self, step: int, results: Any) -> None:
        """To be called when a step is under way; ``results`` are awaited if it is the last."""
        if self._open and step == self._last:
            jax.block_until_ready(results)
            self.close()
            self._tell(f"profile of steps {self._first} to {self._last} in {self._folder}")

    def close(self) -> None:
        """Ends a profile that is still open."""
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
