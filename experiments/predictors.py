"""What ``experiments.predict`` needs of a trained network, whatever it was trained for."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nfnets_jax.data.decoding import Picture
from nfnets_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Answer(Protocol):
    """What a network says of one picture."""

    def as_lines(self) -> list[str]:
        """Returns lines to read."""
        ...

    def as_json(self) -> dict[str, Any]:
        """Returns the fields of a JSON object."""
        ...

    def draw(self, picture: Picture) -> "Figure":
        """Draws the picture with the answer."""
        ...


class Predictor(Protocol):
    """A network with its parameters."""

    def see(self, picture: Picture) -> np.ndarray:
        """Returns the pixels of a picture that the network takes, in one shape for all pictures.

        Raises:
          UnreadableImageError: the picture is damaged.
        """
        ...

    def answer(self, images: np.ndarray, pictures: Sequence[Picture | None]) -> Sequence[Answer]:
        """Answers for a batch of what ``see`` returned; the answers for None do not count."""
        ...


# Opens the run that the command line names.
OpenPredictor = Callable[[argparse.Namespace], Predictor]
_PREDICTORS: dict[str, OpenPredictor] = {}


def register_predictor(task: str, open_predictor: OpenPredictor) -> None:
    """Makes runs of a task known to ``experiments.predict``."""
    _PREDICTORS[task] = open_predictor


def find_predictor(task: str) -> OpenPredictor:
    """Returns what opens runs of a task.

    Raises:
      InputError: nothing does.
    """
    if task not in _PREDICTORS:
        raise InputError(f"runs of the task {task!r} cannot be shown; {', '.join(_PREDICTORS)} can")
    return _PREDICTORS[task]
