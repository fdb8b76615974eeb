"""A plain network without normalization, for images of 32 pixels.

Its shape is that of Jordan 2024, arXiv:2404.00498, section 3: fixed filters that whiten patches,
then groups of two 3x3 convolutions, the first with a maximum over 2x2 pixels. In place of batch
normalization there are scaled activations and standardized weights, as in NF-ResNets (Brock et al.
2021a, arXiv:2101.08692, section 4), but standardized for inputs that have something in common, and
the gradients of batch normalization. What an image gives does not depend on the others, in training
neither. Standardized as in NF-ResNets, for inputs that have nothing in common, the network was one
or two points less accurate after two epochs of CIFAR-10 than not standardized at all, and as it is
two points more.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from nfnets_jax.errors import InputError
from nfnets_jax.kernels.convolution import Policy, conv2d, conv2d_max_pool
from nfnets_jax.models import layers
from nfnets_jax.models.initialization import Identities
from nfnets_jax.models.prepare import LayerStack


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
      shift: when not training, see images too that are moved by a pixel to the lower right and to
        the upper left, mirrored at the edges, at half the weight (Jordan 2024, section 3.5).
    """

    width: tuple[int, ...] = (64, 256, 256)
    train_size: int = 32
    test_size: int = 32
    activation: str = "gelu"
    dropout_rate: float = 0.0
    logit_scale: float = 0.125
    mirror: bool = False
    shift: bool = False
    classifier: str = "NFConvNet/linear"
    layer_stacks: tuple[LayerStack, ...] = ()

    def network(self, num_classes: int, policy: Policy, prepared: bool) -> "NFConvNet":
        """Makes the module, inside a ``hk.transform``; prepared parameters are the same."""
        del prepared
        return NFConvNet(self, num_classes, policy)


VARIANTS: Mapping[str, NFConvNetConfig] = MappingProxyType({"nf_convnet": NFConvNetConfig()})


class NFConvNet(hk.Module):
    """The network; its parameters are Haiku's."""

    def __init__(self, config: NFConvNetConfig, num_classes: int, policy: Policy | None = None):
        super().__init__("NFConvNet")
        self._policy = policy
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
          is_training: whether the images are seen as they are only, not mirrored or moved.
          features: also return the output of each group.

        Returns:
          ``logits`` ``[N, num_classes]`` and ``pool`` ``[N, features]``, float32; with ``features``
          also ``stage_1`` ... ``[N, h, w, width]`` in the compute dtype.

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
            pool = jnp.average(pool, axis=0, weights=weights)
            linear = layers.Linear(self._num_classes, 0.01, name="linear")
            logits = linear(layers.dropout(keys, pool, config.dropout_rate) * config.logit_scale)
        return {**outputs, "pool": pool, "logits": logits}


def _views(images: jax.Array, shift: bool, mirror: bool) -> tuple[list[jax.Array], np.ndarray]:
    """What is seen of images, as ``NFConvNetConfig`` has it, and the weight of each."""
    views, weights = [images], np.array([1])
    if shift:
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        views, weights = [images, padded[:, :-2, :-2], padded[:, 2:, 2:]], np.array([2, 1, 1])
    if mirror:
        views, weights = [*views, *(view[:, :, ::-1] for view in views)], np.tile(weights, 2)
    return views, weights


def _centered_activation(name: str) -> layers.Activation:
    """A scaled activation less its mean, for Gaussian inputs of mean 0 and variance 1."""
    activation = layers.scaled_activation(name)
    places, weights = np.polynomial.hermite_e.hermegauss(64)
    with jax.ensure_compile_time_eval():
        mean = float(weights @ np.asarray(activation(jnp.asarray(places))) / weights.sum())
    return lambda x: activation(x) - jnp.asarray(mean, x.dtype)


# Of what is known of a convolution's inputs, after another batch; of the first batches less. With
# 0.8, networks learned more slowly: what one convolution's kernel does changes the next one's.
_KEPT = 0.93
# Images of a batch that are looked at: for channels, and for pixels, whose statistic is one for all
# channels.
_SEEN, _SEEN_PIXELS = 32, 8
_VARIANCE_EPS = 1e-5


class InputStatistics(NamedTuple):
    """What is known of a 3x3 convolution's inputs, float32.

    Attributes:
      mean: ``[I]``.
      channels: ``[I, I]``, their covariance.
      pixels: ``[9, 9]``, how pixels under the kernel go together, zeros around the image among
        them: sums over channels, as shares of their variances' sum.
    """

    mean: jax.Array
    channels: jax.Array
    pixels: jax.Array

    def variances(self, kernel: jax.Array) -> jax.Array:
        """``[O]``, of what a kernel ``[3, 3, I, O]`` gives.

        The covariance of its inputs is taken to be the product of pixels' and channels'.
        """
        each = kernel.reshape(9, *kernel.shape[2:])
        seen = jnp.einsum("kl,lio->kio", self.pixels, each)
        return jnp.sum(each * jnp.einsum("ij,kjo->kio", self.channels, seen), axis=(0, 1))


def input_statistics(x: jax.Array) -> InputStatistics:
    """Those of ``[N, H, W, I]``, by some of the images."""
    seen = x[:_SEEN].astype(jnp.float32)
    mean = jnp.mean(seen, axis=(0, 1, 2))
    centered = seen - mean
    each, some = centered.reshape(-1, x.shape[-1]), centered[:_SEEN_PIXELS]
    padded = jnp.pad(some, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, height, width, _ = x.shape
    places = itertools.product(range(3), repeat=2)
    shifted = [padded[:, top : top + height, left : left + width] for top, left in places]
    under = jnp.stack(shifted).reshape(9, -1)
    total = jnp.sum(jnp.square(some)) + jnp.finfo(jnp.float32).tiny
    return InputStatistics(mean, each.T @ each / len(each), under @ under.T / total)


class _Conv2D(hk.Module):
    """A convolution whose kernel is standardized for its inputs.

    By weight standardization (Brock et al. 2021a, section 4.2) outputs have mean 0 and variance 1
    if all inputs under a kernel have one mean and nothing in common. Pixels nearby have, and
    channels, more so as they learn: deviations came to be from 0.03 to 5. So here a kernel is
    scaled by what it makes of its inputs' covariance, averaged over the batches learned from
    before. As weights are, that is a part of the network.

    Parameters: ``w`` ``[3, 3, I, O]``, of any scale, which starts by giving the inputs on (Jordan
    2024, section 3.3); ``b`` ``[O]``, zero. State: the fields of ``InputStatistics``, and
    ``batches``, their number.
    """

    def __init__(self, width: int, name: str, policy: Policy | None, pool: bool = False):
        super().__init__(name)
        self._width, self._pool, self._policy = width, pool, policy

    def __call__(self, x: jax.Array, is_training: bool) -> jax.Array:
        """``[N, H, W, I]`` to ``[N, H, W, width]``, or to half the height and width by ``pool``."""
        inputs = x.shape[-1]
        initial = Identities((9 * inputs) ** -0.5)
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
        """From before; in training, what is known from now on is in the state."""
        inputs = x.shape[-1]
        known = InputStatistics(
            hk.get_state("mean", (inputs,), init=jnp.zeros),
            hk.get_state("channels", (inputs, inputs), init=_identity),
            hk.get_state("pixels", (9, 9), init=_identity),
        )
        batches = hk.get_state("batches", (), init=jnp.zeros)
        if is_training:
            kept = jnp.minimum(batches / (batches + 2), _KEPT)
            seen = input_statistics(lax.stop_gradient(x))
            for name, old, new in zip(known._fields, known, seen, strict=True):
                hk.set_state(name, kept * old + (1 - kept) * new)
            hk.set_state("batches", batches + 1)
        return known


def _identity(shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    return jnp.eye(shape[0], dtype=dtype)


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


def whiten(images: jax.Array, policy: Policy | None = None) -> jax.Array:
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
    x = conv2d(mirrored, jnp.asarray(kernel, images.dtype), policy=policy)[:, :height, :width]
    return jnp.concatenate([x, -x], axis=-1)


def _global_max_pool(x: jax.Array) -> jax.Array:
    """``[N, C]``, the maximum over the pixels of ``[N, H, W, C]``.

    Its gradient goes where the maximum was. That of ``jnp.max`` compares: where XLA computes an
    activation anew, and rounds otherwise, no pixel equals the maximum and 0 / 0 is the gradient.
    """
    pixels = x.reshape(len(x), -1, x.shape[-1])
    chosen = jax.nn.one_hot(jnp.argmax(pixels, axis=1), pixels.shape[1], axis=1, dtype=x.dtype)
    return jnp.sum(pixels * chosen, axis=1)
