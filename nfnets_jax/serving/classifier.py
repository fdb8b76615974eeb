"""Classifies pictures: a network with its parameters, its view of a picture, and its classes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nfnets_jax.data.normalization import mean_and_std, normalize
from nfnets_jax.data.sources import imagenet_classes
from nfnets_jax.devices import replicate, transfer
from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models.registry import create_model
from nfnets_jax.serving.frozen import Frozen, Outputs, freeze
from nfnets_jax.serving.preprocessing import TestView, published_view
from nfnets_jax.weights import hub
from nfnets_jax.weights.pretrained import load_pretrained
from nfnets_jax.weights.run import read_model_state, read_run


class Classifier:
    """A network with its parameters on all devices, and the images that it expects.

    Args:
      network: of normalized images.
      num_classes: length of the logits.
      view: the crop of a picture that the network classifies.
      data: the dataset whose mean and standard deviation normalize the pixels.
      class_names: in the order of the labels, if they are known.

    Attributes:
      network: takes pixels, ``[N, size, size, C]`` uint8, and normalizes them itself.
      view, num_classes, class_names: as above.

    Raises:
      InputError: the names are not as many as the classes.
    """

    def __init__(
        self,
        network: Frozen,
        num_classes: int,
        view: TestView,
        data: str,
        class_names: Sequence[str] | None = None,
    ):
        mean, std = mean_and_std(data)
        self.view = dataclasses.replace(view, channels=len(mean))
        self.num_classes = num_classes
        if class_names is not None and len(class_names) != self.num_classes:
            raise InputError(
                f"{len(class_names)} class names for a network of {self.num_classes} classes"
            )
        self.class_names = None if class_names is None else tuple(class_names)

        def forward(weights: Any, pixels: jax.Array, *policy: Policy) -> Outputs:
            return network.forward(weights, normalize(pixels, mean, std), *policy)

        self.network = dataclasses.replace(network, forward=forward)
        self.devices = jax.local_devices()
        self._weights = replicate(network.weights, self.devices)
        self._probabilities = jax.pmap(
            lambda weights, pixels: jax.nn.softmax(forward(weights, pixels)["logits"]),
            devices=self.devices,
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns probabilities ``[N, num_classes]``, float32.

        Args:
          images: ``[N, size, size, C]`` uint8. They are split over all devices; each new ``N``
            compiles anew.
        """
        count = len(images)
        spare = -count % len(self.devices)
        images = np.pad(images, ((0, spare), (0, 0), (0, 0), (0, 0)))
        split = transfer({"image": images}, self.devices)
        probabilities = np.asarray(self._probabilities(self._weights, split["image"]))
        return probabilities.reshape(count + spare, self.num_classes)[:count]

    def name(self, label: int) -> str:
        """Returns the name of a class, or its number if there are no names."""
        return f"class {label}" if self.class_names is None else self.class_names[label]


def open_classifier(
    model: str | None = None,
    weights: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    size: int | None = None,
    precision: str = "float32",
    features: bool = False,
) -> Classifier:
    """Makes a classifier of parameters, wherever they are.

    A run describes its own network, crop and normalization. All other parameters are taken to be
    trained on ImageNet, as published.

    Args:
      model: its name; a run's own if None.
      weights: as ``load_pretrained`` takes it.
      class_names: in the order of the labels; the run's or ImageNet's own if None.
      size: side of the images, pixels, if not the usual one.
      precision: of the computation.
      features: whether the outputs of ``Classifier.network`` hold those of the stages.

    Raises:
      InputError: as ``load_pretrained``, or no model is named, or the names are not as many as the
        classes.
    """
    if size is not None and size < 1:
        raise InputError(f"images of {size} pixels a side; the side is a number from 1 on")
    overrides: dict[str, Any] = {}
    state: Any = {}
    weights = weights and hub.local(weights)
    if weights is not None and Path(weights).is_dir():
        run = read_run(Path(weights))
        name, data = run.config["model"]["name"], run.config["data"]
        if model not in (None, name):
            raise InputError(f"{weights} is a run of {name}, not of {model}")
        model, dataset, class_names = name, data["name"], class_names or run.class_names
        overrides = {field: x for field, x in run.config["model"].items() if field != "name"}
        state = read_model_state(Path(weights))
        view = TestView(size or data["test_image_size"], data["test_margin"], data["test_crop"])
    else:
        if model is None:
            raise InputError("no model is named, such as nfnet_f0; only a run knows its own")
        view, dataset = published_view(create_model(model), size), "imagenet"
    params = load_pretrained(model, weights, **overrides)
    settings = {"precision": precision, "features": features, **overrides}
    num_classes = params[create_model(model, **overrides).classifier]["w"].shape[-1]
    if class_names is None and num_classes == 1000:
        class_names = imagenet_classes()
    network = freeze(create_model(model, num_classes, **settings), params, state)
    return Classifier(network, num_classes, view, dataset, class_names)
