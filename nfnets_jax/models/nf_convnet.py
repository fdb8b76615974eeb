"""A plain network without normalization, for images of 32 pixels.

Its shape is that of Jordan 2024, arXiv:2404.00498, section 3: fixed filters that whiten patches,
then groups of two 3x3 convolutions, the first with a maximum over 2x2 pixels. In place of batch
normalization there are activations of mean 0 and variance 1 (NF-ResNets, Brock et al. 2021a,
arXiv:2101.08692, section 4, have the variance), kernels scaled for what they come to learn, not for
how they start, and the gradients of batch normalization without its statistics: what an image gives
does not depend on the others. Weights are not standardized: after two epochs of CIFAR-10 that costs
one or two points of accuracy.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.models import layers
from nfnets_jax.models.convolution import conv2d, conv2d_max_pool
from nfnets_jax.models.initialization import Normal


@dataclasses.dataclass(frozen=True)
class NFConvNetConfig:
    """One variant.

    Attributes:
      width: channels of each group of two convolutions; each group halves the resolution.
      train_size, test_size: side of the square images, in pixels.
      activation: a key of ``layers.ACTIVATION_GAINS``.
      dropout_rate: of the pooled features.
      logit_scale: factor of the logits.
      mirror: when not training, see each image and its mirror image, and take the mean; for data
        where both are of one class.
    """

    width: tuple[int, ...] = (64, 256, 256)
    train_size: int = 32
    test_size: int = 32
    activation: str = "gelu"
    dropout_rate: float = 0.0
    logit_scale: float = 0.125
    mirror: bool = False


VARIANTS: Mapping[str, NFConvNetConfig] = MappingProxyType({"nf_convnet": NFConvNetConfig()})


class NFConvNet(hk.Module):
    """The network; its parameters are Haiku's."""

    def __init__(self, config: NFConvNetConfig, num_classes: int):
        super().__init__("NFConvNet")
        self._config = config
        self._num_classes = num_classes

    def __call__(
        self,
        images: jax.Array,
        keys: jax.Array | None,
        is_training: bool,
        features: bool = False,
    ) -> dict[str, jax.Array]:
        """Classifies images.

        Args:
          images: ``[N, H, W, 3]`` floats, red, green and blue, each of mean 0 and variance 1 over
            the images learned from, in the dtype to compute in.
          keys: ``[N]`` random keys, one an example, for dropout; None turns it off.
          is_training: whether mirror images are left out that ``mirror`` would have seen.
          features: also return the output of each group.

        Returns:
          ``logits`` ``[N, num_classes]`` and ``pool`` ``[N, features]``, float32; with ``features``
          also ``stage_1`` ... ``[N, h, w, width]`` in the compute dtype.

        Raises:
          InputError: the images have other channels.
        """
        config, outputs = self._config, {}
        activation = _centered_activation(config.activation)
        mirrored = config.mirror and not is_training
        if mirrored:
            images = jnp.concatenate([images, images[:, :, ::-1]])
        with jax.named_scope("stem"):
            x = whiten(images)
        for number, width in enumerate(config.width, start=1):
            with jax.named_scope(f"stage_{number}"):
                x = _Conv2D(width, f"stage{number}_conv0", pool=True)(activation(x))
                branch = _Conv2D(width, f"stage{number}_conv1")(activation(x))
                x = (x + branch) * np.sqrt(0.5).astype(x.dtype)
            if features:
                outputs[f"stage_{number}"] = x[: len(x) // 2] if mirrored else x
        with jax.named_scope("head"):
            pool = _global_max_pool(activation(x)).astype(jnp.float32)
            if mirrored:
                pool = jnp.mean(pool.reshape(2, -1, pool.shape[-1]), axis=0)
            linear = layers.Linear(pool.shape[-1], self._num_classes, 0.01, name="linear")
            seen = layers.dropout(keys, pool, config.dropout_rate) * config.logit_scale
            logits = layers.linear(linear.parameters(), seen)
        return {**outputs, "pool": pool, "logits": logits}


def _centered_activation(name: str) -> layers.Activation:
    """A scaled activation less its mean, for Gaussian inputs of mean 0 and variance 1."""
    activation = layers.scaled_activation(name)
    places, weights = np.polynomial.hermite_e.hermegauss(64)
    with jax.ensure_compile_time_eval():
        mean = float(weights @ np.asarray(activation(jnp.asarray(places))) / weights.sum())
    return lambda x: activation(x) - jnp.asarray(mean, x.dtype)


# Of the outputs of a kernel of norm 1 that has learned, for inputs of variance 1: pixels nearby and
# channels are alike, and kernels come to see what they have in common.
_LEARNED_DEVIATION = 2.0
_VARIANCE_EPS = 1e-5


class _Conv2D(hk.Module):
    """Parameters: ``w`` ``[3, 3, I, O]``, of norms of about 1 an output, ``b`` ``[O]``, zero."""

    def __init__(self, width: int, name: str, pool: bool = False):
        super().__init__(name)
        self._width, self._pool = width, pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, I]`` to ``[N, H, W, width]``, or to half the height and width by ``pool``."""
        shape = (3, 3, x.shape[-1], self._width)
        initial = Normal(math.prod(shape[:-1]) ** -0.5)
        kernel = hk.get_parameter("w", shape, init=initial) / _LEARNED_DEVIATION
        bias = hk.get_parameter("b", shape[-1:], init=jnp.zeros)
        convolve = conv2d_max_pool if self._pool else conv2d
        return free_gradient(convolve(x, kernel.astype(x.dtype))) + bias.astype(x.dtype)


@jax.custom_vjp
def free_gradient(x: jax.Array) -> jax.Array:
    """``x`` itself, ``[N, H, W, C]``; its gradient is free of what a mean and a scale would take.

    Of each channel's gradient ``g`` over images and pixels it is ``g - mean(g) - z mean(g z)``,
    ``z`` the channel at mean 0 and variance 1: what batch normalization gives back, but for its
    scale (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3). The images are those of a device's
    part of the batch.
    """
    return x


def _free_gradient_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    seen, given = (
        array.reshape(-1, array.shape[-1]).astype(jnp.float32) for array in (x, gradient)
    )
    centered = seen - jnp.mean(seen, axis=0)
    variance = jnp.mean(jnp.square(centered), axis=0) + _VARIANCE_EPS
    share = jnp.mean(given * centered, axis=0) / variance
    free = given - jnp.mean(given, axis=0) - centered * share
    return (free.reshape(x.shape).astype(x.dtype),)


free_gradient.defvjp(lambda x: (x, x), _free_gradient_backward)


# Standard deviations of CIFAR-10's training images, normalized, along the directions of
# ``_directions``: rows are the mean of a patch, its change to the right, downwards and both.
_DEVIATIONS = (
    (3.188, 0.865, 0.417),
    (0.583, 0.056, 0.036),
    (0.629, 0.067, 0.041),
    (0.226, 0.014, 0.011),
)
# Directions with less are noise, and are not to be blown up to the size of the others.
_LEAST_DEVIATION = 0.02


def _directions() -> np.ndarray:
    """``[12, 2, 2, 3]`` orthonormal: Haar's functions of 2x2 pixels times opponent colours.

    To natural images they are nearly what principal components are, and the same for all.
    """
    pair = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    return np.einsum("ai,bj,kc->abkijc", pair, pair, colours).reshape(12, 2, 2, 3)


def whiten(images: jax.Array) -> jax.Array:
    """``[N, H, W, 24]`` of about unit variance from ``[N, H, W, 3]`` normalized colours.

    Each pixel's patch of 2x2 is seen along twelve directions, and along their opposites, so that
    an activation loses nothing. Images are mirrored at their right and lower edges: with zeros
    beyond them, what is seen there is six times as large as elsewhere.

    Raises:
      InputError: the images have other channels than red, green and blue.
    """
    if images.shape[-1] != 3:
        raise InputError(f"nf_convnet takes images of 3 channels; these have {images.shape[-1]}")
    deviations = np.hypot(np.reshape(_DEVIATIONS, (12,)), _LEAST_DEVIATION)
    kernel = np.moveaxis(_directions() / deviations[:, None, None, None], 0, -1)
    _, height, width, _ = images.shape
    mirrored = jnp.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="reflect")
    x = conv2d(mirrored, jnp.asarray(kernel, images.dtype))[:, :height, :width]
    return jnp.concatenate([x, -x], axis=-1)


def _global_max_pool(x: jax.Array) -> jax.Array:
    """``[N, C]``, the maximum over the pixels of ``[N, H, W, C]``.

    Its gradient goes where the maximum was. That of ``jnp.max`` compares: where XLA computes an
    activation anew, and rounds otherwise, no pixel equals the maximum and 0 / 0 is the gradient.
    """
    pixels = x.reshape(len(x), -1, x.shape[-1])
    chosen = jax.nn.one_hot(jnp.argmax(pixels, axis=1), pixels.shape[1], axis=1, dtype=x.dtype)
    return jnp.sum(pixels * chosen, axis=1)
