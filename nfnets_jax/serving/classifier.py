"""Classifies pictures: a network with its parameters, its view of a picture, and its classes."""

import dataclasses
import sys
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
from nfnets_jax.weights.checking import count_channels, count_classes
from nfnets_jax.weights.pretrained import load_class_names, load_pretrained
from nfnets_jax.weights.run import read_model_state, read_run


class Classifier:
    """A network with its parameters on all devices, and the images that it expects.

    Args:
      network: of normalized images.
      num_classes: length of the logits.
      view: the crop of a picture that the network classifies.
      data: the dataset whose mean and standard deviation normalize the pixels.
      class_names: in the order of the labels, if they are known.
      parameters: which ones the network has: ``"moving average"`` or ``"raw"``, of a run, or those
        of a ``"file"``.

    Attributes:
      network: takes pixels, ``[N, size, size, C]`` uint8, and normalizes them itself.
      view, num_classes, class_names, parameters: as above.

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
        parameters: str = "file",
    ):
        mean, std = mean_and_std(data)
        self.view = dataclasses.replace(view, channels=len(mean))
        self.num_classes = num_classes
        if class_names is not None and len(class_names) != self.num_classes:
            raise InputError(
                f"{len(class_names)} class names for a network of {self.num_classes} classes"
            )
        self.class_names = None if class_names is None else tuple(class_names)
        self.parameters = parameters

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
    average: bool = True,
) -> Classifier:
    """Makes a classifier of parameters, wherever they are.

    A run describes its own network, crop and normalization. All other parameters are taken to be
    trained on ImageNet, as published.

    Args:
      model: its name; a run's own if None.
      weights: as ``load_pretrained`` takes it.
      class_names: in the order of the labels. None takes those of the weights, as
        ``load_class_names`` does; without any, 1000 classes are taken for ImageNet's, by WordNet
        id, and if the weights are not the published ones, a line on standard error says so.
      size: side of the images, pixels, if not the usual one.
      precision: of the computation.
      features: whether the outputs of ``Classifier.network`` hold those of the stages.
      average: whether to take a run's moving average of the parameters, not the last ones.

    Raises:
      InputError: as ``load_pretrained`` and ``load_class_names``; or no model is named, the names
        are not as many as the classes, or the parameters have no classifier or are for images
        with other channels.
    """
    if size is not None and size < 1:
        raise InputError(f"images of {size} pixels a side; the side is a number from 1 on")
    overrides: dict[str, Any] = {}
    state: Any = {}
    parameters = "file"
    weights = weights and hub.local(weights)
    if weights is not None and Path(weights).is_dir():
        run = read_run(Path(weights))
        name, data = run.config["model"]["name"], run.config["data"]
        if model not in (None, name):
            raise InputError(f"{weights} is a run of {name}, not of {model}")
        model, dataset = name, data["name"]
        overrides = {field: x for field, x in run.config["model"].items() if field != "name"}
        state = read_model_state(Path(weights), average)
        # With a decay of 0 the run kept no average.
        parameters = "moving average" if average and run.config.get("ema_decay", 1) else "raw"
        view = TestView(size or data["test_image_size"], data["test_margin"], data["test_crop"])
    else:
        if model is None:
            raise InputError("no model is named, such as nfnet_f0; only a run knows its own")
        view, dataset = published_view(create_model(model), size), "imagenet"
    params = load_pretrained(model, weights, average=average, **overrides)
    settings = {"precision": precision, "features": features, **overrides}
    known = create_model(model, **overrides)
    num_classes, channels = count_classes(known, params), count_channels(known, params)
    if parameters == "file" and channels != len(mean_and_std(dataset)[0]):
        raise InputError(
            f"{weights} is for images of {channels} channels, which only a run could describe; a "
            "file is taken to be for ImageNet's"
        )
    if not num_classes:
        raise InputError(f"{weights} has no classifier of {model}, and so no classes to tell apart")
    if class_names is None and weights is not None:
        class_names = load_class_names(weights, num_classes)
    if class_names is None and num_classes == 1000:
        if weights is not None:
            print(f"{weights} names no classes: 1000 are taken for ImageNet's", file=sys.stderr)
        class_names = imagenet_classes()
    network = freeze(create_model(model, num_classes, **settings), params, state)
    return Classifier(network, num_classes, view, dataset, class_names, parameters)
