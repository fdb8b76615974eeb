"""From pictures to probabilities, as the network that is loaded wants them prepared."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from nfnets_jax.data.decoding import Picture
from nfnets_jax.data.examples import CenterCrop
from nfnets_jax.data.sources import imagenet_classes, normalization
from nfnets_jax.devices import replicate, transfer
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import create_model
from nfnets_jax.serving.export import Frozen, Outputs, freeze
from nfnets_jax.training import objective
from nfnets_jax.training.checkpoints import read_model_state
from nfnets_jax.training.workdir import read_run
from nfnets_jax.weights.fitting import Fit
from nfnets_jax.weights.pretrained import load_pretrained

# As the ImageNet configurations evaluate; small images have none to give.
_MARGIN = 32
_PHOTOGRAPH = 96


@dataclasses.dataclass(frozen=True)
class View(CenterCrop):
    """The part of a picture that a network is shown, in as many channels as it wants.

    Attributes:
      channels: 3, or 1 for gray.
    """

    channels: int = 3

    def __call__(self, picture: Picture) -> np.ndarray:
        """``[size, size, channels]`` uint8."""
        image = super().__call__(picture)
        if image.shape[2] == self.channels:
            return image
        if self.channels == 1:
            return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        return np.repeat(image, self.channels, axis=2)


class Classifier:
    """A network with its parameters on all devices, and what it wants of images.

    Attributes:
      network: what is given pixels, ``[N, size, size, C]`` uint8, and normalizes them itself.
      view: the part of a picture that it is shown.
      class_names: in the order of the labels; None if nobody has told them.
      num_classes: how many there are.
    """

    def __init__(
        self,
        network: Frozen,
        num_classes: int,
        crop: CenterCrop,
        data: str,
        class_names: Sequence[str] | None = None,
    ):
        """Takes the weights to the devices.

        Args:
          network: of normalized images.
          num_classes: as in ``Attributes``.
          crop: the part of a picture that it is shown.
          data: the dataset whose pixels' mean and standard deviation the network knows.
          class_names: as in ``Attributes``.

        Raises:
          InputError: the names are not as many as the classes.
        """
        mean, std = normalization(data)
        self.view = View(**dataclasses.asdict(crop), channels=len(mean))
        self.num_classes = num_classes
        if class_names is not None and len(class_names) != self.num_classes:
            raise InputError(
                f"{len(class_names)} class names for a network of {self.num_classes} classes"
            )
        self.class_names = None if class_names is None else tuple(class_names)

        def of_pixels(weights: Any, images: jax.Array) -> Outputs:
            return network.forward(weights, objective.normalize(images, mean, std))

        self.network = dataclasses.replace(network, forward=of_pixels)
        self.devices = jax.local_devices()
        self._weights = replicate(network.weights, self.devices)
        self._probabilities = jax.pmap(
            lambda weights, images: jax.nn.softmax(of_pixels(weights, images)["logits"]),
            devices=self.devices,
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities ``[N, num_classes]``, float32, of images ``[N, size, size, C]`` uint8.

        The work is split over all devices; each new ``N`` is compiled for.
        """
        count = len(images)
        spare = -count % len(self.devices)
        images = np.pad(images, ((0, spare), (0, 0), (0, 0), (0, 0)))
        split = transfer({"image": images}, self.devices)
        probabilities = np.asarray(self._probabilities(self._weights, split["image"]))
        return probabilities.reshape(count + spare, self.num_classes)[:count]

    def name(self, label: int) -> str:
        """The class's name, or its number where nobody has told names."""
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
    """A classifier from parameters wherever they are kept.

    A run says itself what network it is of, and how its images are cropped and normalized; all
    else is taken for trained on ImageNet, as published.

    Args:
      model: its name; a run's own if None.
      weights: as ``load_pretrained`` has it.
      class_names: in the order of the labels; the run's or ImageNet's own if None.
      size: side of the images, pixels, if it should be another.
      precision: what is computed in.
      features: whether the outputs of ``Classifier.network`` hold those of the stages.

    Raises:
      InputError: as ``load_pretrained``, or no model is named, or the names are not as many as the
        classes.
    """
    if size is not None and size < 1:
        raise InputError(f"--size is {size}; it takes a number from 1 on")
    overrides: dict[str, Any] = {}
    state: Any = {}
    if weights is not None and Path(weights).is_dir():
        run = read_run(Path(weights))
        name, data = run.config["model"]["name"], run.config["data"]
        if model not in (None, name):
            raise InputError(f"{weights} is a run of {name}, not of {model}")
        model, data_name, class_names = name, data["name"], class_names or run.class_names
        overrides = {field: x for field, x in run.config["model"].items() if field != "name"}
        state = read_model_state(Path(weights))
        crop = CenterCrop(size or data["test_image_size"], data["test_margin"], data["test_crop"])
    else:
        if model is None:
            raise InputError("no model is named: give --model, such as nfnet_f0")
        size = size or create_model(model).config.test_size
        crop = CenterCrop(size, _MARGIN if size > _PHOTOGRAPH else 0)
        data_name = "tfds:imagenet2012"
    params = load_pretrained(model, weights, **overrides)
    num_classes = Fit(model, overrides).num_classes(params)
    if class_names is None and num_classes == 1000:
        class_names = imagenet_classes()
    settings = {"precision": precision, "features": features, **overrides}
    network = freeze(create_model(model, num_classes, **settings), params, state)
    return Classifier(network, num_classes, crop, data_name, class_names)
