"""The answers of detectors and segmenters: boxes and maps of classes, drawn on the picture."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.normalization import IMAGENET_MEAN, IMAGENET_STD, normalize
from nfnets_jax.errors import InputError
from nfnets_jax.serving.frozen import Frozen, freeze
from nfnets_jax.training.task import find_task
from nfnets_jax.weights import hub
from nfnets_jax.weights.run import read_model_state, read_params, read_run

from . import drawing
from .decoding import decode, stride_of
from .examples import as_rgb
from .placement import Placement, fit
from .segmentation import enlarge, most_probable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is less certain is not shown.
_LEAST_SCORE = 0.3
_MOST = 100


class FoundObject(NamedTuple):
    """An object: its class, how certain it is, and its box in pixels of the picture."""

    name: str
    score: float
    box: tuple[float, ...]


class FoundObjects(NamedTuple):
    """The objects in a picture, the most certain first; an ``Answer``."""

    objects: tuple[FoundObject, ...]

    def as_lines(self) -> list[str]:
        """Returns a line an object."""
        return [
            f"  {each.score:7.2%}  {each.name}  {' '.join(f'{edge:.0f}' for edge in each.box)}"
            for each in self.objects
        ] or ["  nothing"]

    def as_json(self) -> dict[str, Any]:
        """Returns the field ``objects``."""
        return {"objects": [each._asdict() for each in self.objects]}

    def draw(self, picture: Picture) -> "Figure":
        """Draws boxes on the picture."""
        figure, axes = whole_figure(picture.pixels())
        names = [f"{each.name} {each.score:.0%}" for each in self.objects]
        drawing.draw_boxes(axes, [each.box for each in self.objects], names)
        return figure


class FoundPixels(NamedTuple):
    """The class of each pixel of a picture; an ``Answer``.

    Attributes:
      labels: ``[H, W]``, 0 for the background, ``k + 1`` for class ``k``.
      names: of the classes.
    """

    labels: np.ndarray
    names: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Each class's share of the pixels, for those that have any."""
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.names) + 1)[1:]
        shares = counts / self.labels.size
        return {self.names[k]: float(shares[k]) for k in np.argsort(-shares) if shares[k]}

    def as_lines(self) -> list[str]:
        """Returns a line a class, with its share of the pixels."""
        return [f"  {share:7.2%}  {name}" for name, share in self.shares.items()] or ["  nothing"]

    def as_json(self) -> dict[str, Any]:
        """Returns the field ``shares``."""
        return {"shares": self.shares}

    def draw(self, picture: Picture) -> "Figure":
        """Draws the classes in colours over the picture."""
        figure, axes = whole_figure(picture.pixels())
        drawing.draw_classes(axes, self.labels, self.names)
        return figure


def whole_figure(pixels: np.ndarray) -> tuple["Figure", Any]:
    """Draws pixels ``[H, W, C]`` uint8 that fill a figure."""
    from matplotlib.figure import Figure  # It takes a second to import.

    height, width = pixels.shape[:2]
    figure = Figure(figsize=(6, 6 * height / width), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    drawing.draw_pixels(axes, pixels)
    return figure, axes


class DensePredictor:
    """Answers by a run of detection or segmentation; a ``Predictor``.

    Attributes:
      size: side of the squares that pictures are fitted in, pixels.
    """

    def __init__(self, network: Frozen, task: str, names: tuple[str, ...], size: int):
        self.size, self._names = size, names
        self._is_detector = task == "detection"

        def answer(network: Frozen, images: jax.Array) -> Any:
            outputs = network(normalize(images, IMAGENET_MEAN, IMAGENET_STD))
            if self._is_detector:
                stride = stride_of(images, outputs["logits"])
                return decode(outputs["logits"], outputs["distances"], stride, _MOST)
            return most_probable(enlarge(outputs["logits"], images)).astype(jnp.uint8)

        self._network, self._answer = network, jax.jit(answer)

    def see(self, picture: Picture) -> np.ndarray:
        """Returns the picture fitted in the square that the network was tested with."""
        return self._placement(picture).image(as_rgb(picture.pixels()))

    def _placement(self, picture: Picture) -> Placement:
        return fit(picture.height, picture.width, self.size)

    def answer(
        self, images: np.ndarray, pictures: Sequence[Picture | None]
    ) -> list[FoundObjects | FoundPixels]:
        """Returns what is found in each picture, in its own pixels."""
        found = jax.tree.map(np.asarray, self._answer(self._network, images))
        answers: list[FoundObjects | FoundPixels] = []
        for index, picture in enumerate(pictures):
            if picture is None:
                answers.append(FoundObjects(()))
                continue
            placement = self._placement(picture)
            if not self._is_detector:
                shape = picture.height, picture.width
                answers.append(FoundPixels(placement.labels_back(found[index], shape), self._names))
                continue
            boxes, scores, classes = (values[index] for values in found)
            limits = np.array([picture.width, picture.height] * 2)
            boxes = np.clip(placement.back(boxes), 0, limits)
            kept = np.flatnonzero(scores >= _LEAST_SCORE)
            answers.append(
                FoundObjects(
                    tuple(
                        FoundObject(
                            self._names[classes[k]], float(scores[k]), tuple(boxes[k].tolist())
                        )
                        for k in kept
                    )
                )
            )
        return answers


def open_predictor(arguments: argparse.Namespace) -> DensePredictor:
    """Opens the run that ``--weights`` names, of detection or segmentation.

    Raises:
      InputError: it cannot be read.
    """
    path = Path(hub.local(arguments.weights))
    run = read_run(path)
    if run.class_names is None:
        raise InputError(f"{path} has no classes.json")
    config = ConfigDict(run.config)
    if arguments.model not in (None, config.model.name):
        raise InputError(f"{path} is a run of {config.model.name}, not of {arguments.model}")
    config.precision = arguments.precision
    model = find_task(config.task.name).create_model(config, len(run.class_names))
    average = not arguments.raw
    params, state = read_params(path, average), read_model_state(path, average)
    size = arguments.size or config.data.test_image_size
    return DensePredictor(freeze(model, params, state), config.task.name, run.class_names, size)
