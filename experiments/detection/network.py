"""A backbone with a feature pyramid and a head that predicts at every pixel of it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy
from nfnets_jax.models import layers
from nfnets_jax.models.nfnet import WSConv2D
from nfnets_jax.models.prepare import LayerStack
from nfnets_jax.models.registry import FeatureInfo, Model, NetworkConfig, create_model

from .settings import Settings

# Name of the module that is added to a backbone.
HEAD = "DenseHead"
# A new head gives each class this probability, so that the many pixels without an object do not
# decide the first steps (Lin et al. 2017, arXiv:1708.02002, section 4.1).
_PRIOR = 0.01
# Standard deviation of the initial weights of predictions.
_STD = 0.03


@dataclasses.dataclass(frozen=True)
class DenseConfig:
    """The options of a network that predicts at every pixel; a ``NetworkConfig``.

    Attributes:
      backbone: the options of the backbone, of any family.
      stages: the backbone's stages that the pyramid joins, the largest resolution first.
      channels: of the pyramid and the head.
      depth: 3x3 convolutions of the head.
      subpixels: predictions in a row at each pixel of the pyramid, and in a column (sub-pixel
        convolution, Shi et al. 2016, arXiv:1609.05158): finer borders than the features have.
      boxes: whether it predicts a box at every pixel too. Each class then has a probability of its
        own, which is low at most pixels.
      frozen_statistics: whether the backbone's batch normalization keeps its running statistics,
        as detectors do whose batches are too small for statistics of their own.
    """

    backbone: Any
    stages: tuple[FeatureInfo, ...]
    channels: int = 64
    depth: int = 2
    subpixels: int = 1
    boxes: bool = False
    frozen_statistics: bool = False

    @property
    def train_size(self) -> int:
        """Side of the backbone's square training images, in pixels."""
        return self.backbone.train_size

    @property
    def test_size(self) -> int:
        """Side of the backbone's square test images, in pixels."""
        return self.backbone.test_size

    @property
    def test_crop(self) -> str:
        """How the backbone's images are cropped for evaluation."""
        return self.backbone.test_crop

    @property
    def classifier(self) -> str:
        """Full name of the layer that predicts classes."""
        return f"{HEAD}/predictions"

    @property
    def first_conv(self) -> str:
        """Full name of the first convolution's module."""
        return self.backbone.first_conv

    @property
    def layer_stacks(self) -> tuple[LayerStack, ...]:
        """The equal blocks of the backbone that are compiled as a loop."""
        return self.backbone.layer_stacks

    @property
    def stride(self) -> int:
        """Pixels of the image between neighbouring pixels of the pyramid."""
        return self.stages[0].stride

    def network(
        self, num_classes: int, policy: Policy, prepared: bool
    ) -> Callable[..., dict[str, jax.Array]]:
        """Makes the network, inside a ``hk.transform``.

        The backbone's parameters have the names that they have alone, so that weights of a
        classifier are weights of its backbone.

        Returns:
          A function with the arguments of a ``Network``. It returns ``logits``
          ``[N, subpixels * h, subpixels * w, num_classes]`` and with ``boxes`` also ``distances``
          ``[N, h, w, 4]``, float32 and positive, from a pixel to the left, upper, right and lower
          edge of its box.
        """
        backbone = self.backbone.network(0, policy, prepared)
        head = DenseHead(self, num_classes, policy, prepared)

        def run(
            images: jax.Array, keys: jax.Array | None, is_training: bool, features: bool
        ) -> dict[str, jax.Array]:
            del features
            outputs = backbone(images, keys, is_training and not self.frozen_statistics, True)
            with jax.named_scope("head"):
                return head([outputs[stage.name] for stage in self.stages])

        return run


class DenseHead(hk.Module):
    """A feature pyramid (Lin et al. 2017, arXiv:1612.03144, section 3) and a head, normalizer-free.

    All convolutions are standardized (Brock et al. 2021a, arXiv:2101.08692, section 4.2), and the
    sum of two signals is divided by the root of two: at initialization every signal keeps a
    variance of about one.
    """

    def __init__(self, config: DenseConfig, num_classes: int, policy: Policy, prepared: bool):
        super().__init__(HEAD)
        self._config = config
        self._num_classes = num_classes
        self._conv = functools.partial(WSConv2D, config.channels, policy=policy, prepared=prepared)
        self._activation = layers.scaled_activation("relu")

    def __call__(self, stages: Sequence[jax.Array]) -> dict[str, jax.Array]:
        """Predicts from the outputs of ``config.stages``, as ``DenseConfig.network`` says."""
        config, conv, activation = self._config, self._conv, self._activation
        x = self._pyramid(stages)
        for index in range(config.depth):
            x = conv(kernel_size=3, name=f"conv{index}")(activation(x))
        x = activation(x).astype(jnp.float32)
        outputs = (self._num_classes + 4 * config.boxes) * config.subpixels**2
        # By another name than a classifier's, whose gradients AGC leaves alone: those of a
        # detector come from few pixels, and vary too much for that.
        predicted = layers.Linear(outputs, _STD, name="predictions")(x)
        predicted = spread(predicted, config.subpixels)
        if not config.boxes:
            return {"logits": predicted}
        logits, distances = jnp.split(predicted, [self._num_classes], axis=-1)
        return {
            "logits": logits + math.log(_PRIOR / (1 - _PRIOR)),
            "distances": config.stride * jax.nn.softplus(distances),
        }

    def _pyramid(self, stages: Sequence[jax.Array]) -> jax.Array:
        """Adds the stages, the smallest resolution first, at the largest."""
        laterals = [
            self._conv(kernel_size=1, name=f"lateral_{info.name}")(self._activation(stage))
            for info, stage in zip(self._config.stages, stages, strict=True)
        ]
        joined = laterals.pop()
        for lateral in reversed(laterals):
            joined = (lateral + upsample(joined, lateral.shape)) * 0.5**0.5
        return joined


def spread(x: jax.Array, factor: int) -> jax.Array:
    """Spreads channels over pixels: ``[N, h, w, factor**2 * K]`` to ``[N, factor * h, ..., K]``."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, factor, factor, channels // factor**2)
    return x.swapaxes(2, 3).reshape(batch, factor * height, factor * width, -1)


def upsample(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Repeats the pixels of ``[N, h, w, C]``, as far as ``shape`` ``[N, H, W, C]`` reaches."""
    for axis in (1, 2):
        x = jnp.repeat(x, -(-shape[axis] // x.shape[axis]), axis)
    return x[:, : shape[1], : shape[2]]


def create_dense_model(
    config: ConfigDict, num_classes: int, settings: Settings, **options: Any
) -> Model:
    """Creates a network that predicts at every pixel, on the backbone that ``config.model`` names.

    Args:
      config: the configuration of the run.
      num_classes: length of the logits.
      settings: of the pyramid and the head.
      **options: other fields of ``DenseConfig``.

    Raises:
      InputError: no such model or setting, or none of its stages has the stride.
    """
    backbone = create_model(**config.model, num_classes=0, precision=config.precision)
    # Of several stages with one stride, the last knows most.
    by_stride = {stage.stride: stage for stage in backbone.feature_info}
    stride = settings.stride
    if stride not in by_stride:
        known = ", ".join(map(str, by_stride))
        raise InputError(
            f"task.settings.stride is {stride}; the stages of {config.model.name} have {known}"
        )
    network: NetworkConfig = DenseConfig(
        backbone.config,
        tuple(stage for stage in by_stride.values() if stage.stride >= stride),
        channels=settings.channels,
        depth=settings.depth,
        frozen_statistics=settings.frozen_statistics,
        **options,
    )
    return Model(config.model.name, num_classes, network, config.precision)
