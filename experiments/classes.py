"""The answers of a classifier: the five likeliest classes of a picture."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nfnets_jax.data.decoding import Picture
from nfnets_jax.serving.classifier import Classifier

from . import opening
from .predictors import register_predictor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOP = 5


class Prediction(NamedTuple):
    """A class and its probability."""

    label: int
    name: str
    probability: float


class Classes(NamedTuple):
    """The likeliest classes of a picture, the likeliest first; an ``Answer``."""

    classes: tuple[Prediction, ...]

    def as_lines(self) -> list[str]:
        """Returns a line a class."""
        return [f"  {each.probability:7.2%}  {each.name}" for each in self.classes]

    def as_json(self) -> dict[str, Any]:
        """Returns the field ``classes``."""
        return {"classes": [each._asdict() for each in self.classes]}

    def draw(self, picture: Picture) -> "Figure":
        """Draws the picture, and bars beside it."""
        from matplotlib.figure import Figure  # It takes a second to import.

        figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
        left, right = figure.subplots(1, 2)
        pixels = picture.pixels()
        left.imshow(pixels, cmap="gray" if pixels.shape[2] == 1 else None)
        left.set_axis_off()
        places = range(len(self.classes))[::-1]
        right.barh(places, [each.probability for each in self.classes])
        right.set_yticks(places, [each.name for each in self.classes], parse_math=False)
        right.set(xlim=(0, 1), xlabel="probability")
        return figure


class ClassPredictor:
    """Answers by a classifier; a ``Predictor``."""

    def __init__(self, classifier: Classifier):
        self._classifier = classifier

    def see(self, picture: Picture) -> np.ndarray:
        """Returns the crop of a picture that the network is tested with."""
        return self._classifier.view(picture)

    def answer(self, images: np.ndarray, pictures: Sequence[Picture | None]) -> list[Classes]:
        """Returns the likeliest classes of each image."""
        del pictures
        return [self._likeliest(each) for each in self._classifier(images)]

    def _likeliest(self, probabilities: np.ndarray) -> Classes:
        order = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
        name = self._classifier.name
        return Classes(tuple(Prediction(k, name(k), float(probabilities[k])) for k in order))


def _open(arguments: argparse.Namespace) -> ClassPredictor:
    return ClassPredictor(opening.open_named(arguments))


register_predictor("classification", _open)
