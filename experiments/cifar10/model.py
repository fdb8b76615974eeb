"""A plain network for images of 32 pixels, normalized by running statistics.

Its shape is that of Jordan 2024, arXiv:2404.00498, section 3: fixed filters whiten patches, then
come groups of two 3x3 convolutions, the first with a maximum over 2x2 pixels. It has no batch
normalization, and yet it is not a normalizer-free network. In kind it is online normalization
(Chiley et al. 2019, arXiv:1905.05894):

- each convolution centres its inputs by their running mean;
- each kernel is scaled by the running covariance of its inputs;
- each convolution's gradient is cleared of its mean and of its correlation with the output, both
  taken over the batch, as batch normalization's is.

In the forward pass an image does not depend on its batch-mates. Its gradient does, less than with
batch normalization, where a normalizer-free network's does not (tests/models/test_independence.py).
Standardized as in NF-ResNets, for inputs that have nothing in common, the network was one or two
points less accurate after two epochs of CIFAR-10 than not standardized at all, and in this form it
was two points more accurate.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy, conv2d
from nfnets_jax.models import layers
from nfnets_jax.models.initialization import Normal
from nfnets_jax.models.prepare import LayerStack

from .pooling import conv2d_max_pool


@dataclasses.dataclass(frozen=True)
class NFConvNetConfig:
    """The options of the network.

    Attributes:
      width: channels of each group of two convolutions; each group halves the resolution.
      train_size, test_size: side of the square images, in pixels.
      test_crop: how images are cropped for evaluation; CIFAR-10's are not.
      activation: a key of ``layers.ACTIVATION_GAINS``.
      dropout_rate: of the pooled features.
      logit_scale: factor of the logits.
      mirror: whether evaluation averages the outputs for an image and its mirror image.
      shift: whether evaluation also averages, at half the weight, the outputs for images moved by a
        pixel to the lower right and to the upper left (Jordan 2024, section 3.5).
      round_products: whether the factors of 3x3 convolutions are rounded to bfloat16, on CPUs that
        multiply it faster. Sums and all else stay in the dtype of the images.
    """

    width: tuple[int, ...] = (64, 256, 256)
    train_size: int = 32
    test_size: int = 32
    test_crop: str = "resize"
    activation: str = "gelu"
    dropout_rate: float = 0.0
    logit_scale: float = 0.125
    mirror: bool = False
    shift: bool = False
    round_products: bool = False
    classifier: str = "NFConvNet/linear"
    first_conv: str = ""  # Its filters are fixed, for three channels.
    layer_stacks: tuple[LayerStack, ...] = ()

    def network(self, num_classes: int, policy: Policy, prepared: bool) -> "NFConvNet":
        """Makes the module, inside a ``hk.transform``; prepared parameters are the same."""
        del prepared
        if self.round_products:
            policy = dataclasses.replace(policy, rounding=jnp.bfloat16)
        return NFConvNet(self, num_classes, policy)


class NFConvNet(hk.Module):
    """The network; ``config`` and ``policy`` are the options, and how convolutions are computed."""

    def __init__(self, config: NFConvNetConfig, num_classes: int, policy: Policy | None = None):
        super().__init__("NFConvNet")
        self._policy = policy
        self._config = config
        self._num_classes = num_classes

    def __call__(
        self,
        images: jax.Array,
        keys: jax.Array | None = None,
        is_training: bool = False,
        features: bool = False,
    ) -> dict[str, jax.Array]:
        """Classifies images.

        Args:
          images: ``[N, H, W, 3]`` floats, red, green and blue, each of mean 0 and variance 1 over
            the training images, in the dtype to compute in.
          keys: ``[N]`` random keys, one an example, for dropout; None turns it off.
          is_training: whether the running statistics are updated, and the images neither mirrored
            nor moved.
          features: also return the output of each group.

        Returns:
          ``pool`` ``[N, features]`` and, unless ``num_classes`` is 0, ``logits``
          ``[N, num_classes]``, float32; with ``features`` also ``stage_1`` ...
          ``[N, h, w, width]`` in the compute dtype.

        Raises:
          InputError: the images have other channels.
        """
        config, outputs = self._config, {}
        activation = _centered_activation(config.activation)
        testing = not is_training
        views, weights = _views(images, testing and config.shift, testing and config.mirror)
        count, images = images.shape[0], jnp.concatenate(views)
        with jax.named_scope("stem"):
            x = whiten(images, self._policy)
        for number, width in enumerate(config.width, start=1):
            with jax.named_scope(f"stage_{number}"):
                for place in range(2):
                    name = f"stage{number}_conv{place}"
                    convolve = _Conv2D(width, name, self._policy, pool=place == 0)
                    x = convolve(activation(x), is_training)
            if features:
                outputs[f"stage_{number}"] = x[:count]
        with jax.named_scope("head"):
            pool = _global_max_pool(activation(x)).astype(jnp.float32)
            pool = pool.reshape(len(views), count, pool.shape[-1])
            outputs["pool"] = pool = jnp.average(pool, axis=0, weights=weights)
            if self._num_classes:
                linear = layers.Linear(self._num_classes, 0.01, name="linear")
                kept = layers.dropout(keys, pool, config.dropout_rate)
                outputs["logits"] = linear(kept * config.logit_scale)
        return outputs


def _views(images: jax.Array, shift: bool, mirror: bool) -> tuple[list[jax.Array], np.ndarray]:
    """Returns the views of the images that evaluation averages, and their weights."""
    views, weights = [images], np.array([1])
    if shift:
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        views, weights = [images, padded[:, :-2, :-2], padded[:, 2:, 2:]], np.array([2, 1, 1])
    if mirror:
        views, weights = [*views, *(view[:, :, ::-1] for view in views)], np.tile(weights, 2)
    return views, weights


def _centered_activation(name: str) -> layers.Activation:
    """Returns a scaled activation less its mean for Gaussian inputs of mean 0 and variance 1."""
    activation = layers.scaled_activation(name)
    places, weights = np.polynomial.hermite_e.hermegauss(64)
    with jax.ensure_compile_time_eval():
        mean = float(weights @ np.asarray(activation(jnp.asarray(places))) / weights.sum())
    return lambda x: activation(x) - jnp.asarray(mean, x.dtype)


# Decay of the running statistics, a batch; the first batches decay faster. With 0.8 networks
# learned more slowly: a change of one kernel changes the statistics of the next one's inputs.
_DECAY = 0.93
# Images of a batch that the statistics of channels are taken over, and those of pixels, which all
# channels share.
_CHANNEL_IMAGES, _PIXEL_IMAGES = 32, 8
_VARIANCE_EPS = 1e-5


class InputStatistics(NamedTuple):
    """Statistics of a 3x3 convolution's inputs, float32.

    Attributes:
      mean: ``[I]``.
      channels: ``[I, I]``, the covariance of the channels.
      pixels: ``[9, 9]``, the correlation of the pixels under the kernel, averaged over channels;
        zeros around the image count.
    """

    mean: jax.Array
    channels: jax.Array
    pixels: jax.Array

    def variances(self, kernel: jax.Array) -> jax.Array:
        """Returns the variances ``[O]`` of the outputs of a kernel ``[3, 3, I, O]``.

        The covariance of its inputs is approximated by the product of the pixels' and the
        channels'.
        """
        each = kernel.reshape(9, *kernel.shape[2:])
        seen = jnp.einsum("kl,lio->kio", self.pixels, each)
        return jnp.sum(each * jnp.einsum("ij,kjo->kio", self.channels, seen), axis=(0, 1))


def input_statistics(x: jax.Array) -> InputStatistics:
    """Returns the statistics of ``x`` ``[N, H, W, I]``, over some of the images."""
    seen = x[:_CHANNEL_IMAGES].astype(jnp.float32)
    mean = jnp.mean(seen, axis=(0, 1, 2))
    centered = seen - mean
    each, some = centered.reshape(-1, x.shape[-1]), centered[:_PIXEL_IMAGES]
    padded = jnp.pad(some, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, height, width, _ = x.shape
    places = itertools.product(range(3), repeat=2)
    shifted = [padded[:, top : top + height, left : left + width] for top, left in places]
    under = jnp.stack(shifted).reshape(9, -1)
    total = jnp.sum(jnp.square(some)) + jnp.finfo(jnp.float32).tiny
    return InputStatistics(mean, each.T @ each / len(each), under @ under.T / total)


class _Conv2D(hk.Module):
    """A convolution whose kernel is scaled by the running covariance of its inputs.

    Weight standardization (Brock et al. 2021a, arXiv:2101.08692, section 4.2) gives outputs of mean
    0 and variance 1 if the inputs under a kernel have one mean and are uncorrelated. Neighbouring
    pixels and channels are correlated, more so as the network learns: the outputs' standard
    deviations came to lie between 0.03 and 5. With the covariance they stay near 1.

    Parameters: ``w`` ``[3, 3, I, O]``, of any scale, whose first outputs start as the inputs
    (Jordan 2024, section 3.3); ``b`` ``[O]``, zero. State: the fields of ``InputStatistics``, and
    ``batches``, the number of batches so far.
    """

    def __init__(self, width: int, name: str, policy: Policy | None, pool: bool = False):
        super().__init__(name)
        self._width, self._pool, self._policy = width, pool, policy

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        """Maps ``[N, H, W, I]`` to ``[N, H, W, width]``, half as high and wide with ``pool``."""
        inputs = x.shape[-1]
        initial = _Identities((9 * inputs) ** -0.5)
        kernel = hk.get_parameter("w", (3, 3, inputs, self._width), init=initial)
        bias = hk.get_parameter("b", (self._width,), init=jnp.zeros)
        known = self._known(x, is_training)
        kernel *= lax.rsqrt(known.variances(lax.stop_gradient(kernel)) + _VARIANCE_EPS)
        x, kernel = x - known.mean.astype(x.dtype), kernel.astype(x.dtype)
        if self._pool:
            x = conv2d_max_pool(x, kernel, self._policy)
        else:
            x = conv2d(x, kernel, policy=self._policy)
        return free_gradient(x) + bias.astype(x.dtype)

    def _known(self, x: jax.Array, is_training: bool) -> InputStatistics:
        """Returns the running statistics so far; training then updates them with those of ``x``."""
        inputs = x.shape[-1]
        known = InputStatistics(
            hk.get_state("mean", (inputs,), init=jnp.zeros),
            hk.get_state("channels", (inputs, inputs), init=_identity),
            hk.get_state("pixels", (9, 9), init=_identity),
        )
        batches = hk.get_state("batches", (), init=jnp.zeros)
        if is_training:
            kept = jnp.minimum(batches / (batches + 2), _DECAY)
            seen = input_statistics(lax.stop_gradient(x))
            for name, old, new in zip(known._fields, known, seen, strict=True):
                hk.set_state(name, kept * old + (1 - kept) * new)
            hk.set_state("batches", batches + 1)
        return known


class _Identities(Normal):
    """``Normal`` for a kernel ``[h, w, I, O]``, but the first outputs start as one input each."""

    def scale(self, numbers: jax.Array) -> jax.Array:
        height, width, inputs, outputs = numbers.shape
        own = jnp.arange(min(inputs, outputs))
        kernel = super().scale(numbers).at[..., own].set(0)
        return kernel.at[height // 2, width // 2, own, own].set(1)


def _identity(shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    return jnp.eye(shape[0], dtype=dtype)


@jax.custom_vjp
def free_gradient(x: jax.Array) -> jax.Array:
    """Returns ``x`` ``[N, H, W, C]``, with the gradient of batch normalization but for its scale.

    The gradient of a channel is ``g - mean(g) - z mean(g z)``, where ``g`` is its cotangent, ``z``
    the channel at mean 0 and variance 1, and the means run over pixels and the images of a device's
    part of the batch (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3).
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


# Standard deviations of CIFAR-10's normalized training images along ``_directions``. The rows are
# the mean of a patch, its change to the right, its change downwards, and both.
_DEVIATIONS = (
    (3.188, 0.865, 0.417),
    (0.583, 0.056, 0.036),
    (0.629, 0.067, 0.041),
    (0.226, 0.014, 0.011),
)
# Directions with less are noise, which whitening must not amplify.
_LEAST_DEVIATION = 0.02


def _directions() -> np.ndarray:
    """Returns 12 orthonormal filters ``[12, 2, 2, 3]``: Haar's functions times opponent colours.

    They are close to the principal components of natural images' patches.
    """
    pair = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    return np.einsum("ai,bj,kc->abkijc", pair, pair, colours).reshape(12, 2, 2, 3)


def whiten(images: jax.Array, policy: Policy | None = None) -> jax.Array:
    """Whitens patches: maps normalized colours ``[N, H, W, 3]`` to ``[N, H, W, 24]``.

    The outputs are a 2x2 patch's projections on twelve directions, and their negatives, so that an
    activation loses nothing. Images are mirrored at their right and lower edges: with zeros beyond
    them, outputs there are six times as large as elsewhere.

    Raises:
      InputError: the images have other channels than red, green and blue.
    """
    if images.shape[-1] != 3:
        raise InputError(f"nf_convnet takes images of 3 channels; these have {images.shape[-1]}")
    deviations = np.hypot(np.reshape(_DEVIATIONS, (12,)), _LEAST_DEVIATION)
    kernel = np.moveaxis(_directions() / deviations[:, None, None, None], 0, -1)
    _, height, width, _ = images.shape
    mirrored = jnp.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="reflect")
    x = conv2d(mirrored, jnp.asarray(kernel, images.dtype), policy=policy)[:, :height, :width]
    return jnp.concatenate([x, -x], axis=-1)


def _global_max_pool(x: jax.Array) -> jax.Array:
    """Returns the maximum ``[N, C]`` over the pixels of ``[N, H, W, C]``.

    Its gradient goes to the pixel of the maximum. The gradient of ``jnp.max`` compares values:
    where XLA recomputes an activation with other rounding, no pixel equals it, and it is 0 / 0.
    """
    pixels = x.reshape(len(x), -1, x.shape[-1])
    chosen = jax.nn.one_hot(jnp.argmax(pixels, axis=1), pixels.shape[1], axis=1, dtype=x.dtype)
    return jnp.sum(pixels * chosen, axis=1)
