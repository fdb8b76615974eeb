"""A small GPT whose normalization is an option: layer normalization, none, or what replaces it.

The network is GPT-2's (Radford et al. 2019, section 2.3) without dropout. With ``"nf"`` its blocks
are those of normalizer-free ResNets (Brock et al. 2021a, arXiv:2101.08692, section 3), carried over
to attention.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.errors import InputError, nearest
from nfnets_jax.models import layers
from nfnets_jax.models.initialization import Normal
from nfnets_jax.models.pointwise_norms import Derf, DyT
from nfnets_jax.ranges import Range, check_ranges

NORMALIZATIONS = ("layer_norm", "none", "nf", "dyt", "derf")
_STD = 0.02  # Of GPT-2's matrices and embeddings.

# Makes a layer, ``(features, name=...)``, that maps arrays to arrays.
MakeLinear = Callable[..., Any]
_COUNT = Range(1, 2**20, whole=True)
_RANGES = {
    "width": _COUNT,
    "layers": _COUNT,
    "heads": _COUNT,
    "context": _COUNT,
    "vocabulary": _COUNT,
    "alpha": Range(0, 10**6),
    "pointwise_alpha": Range(0, 10**6, above=True),
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The options of a GPT.

    Attributes:
      width: channels of a token; a multiple of ``heads``.
      layers: number of blocks, each of attention and a two-layer perceptron.
      heads: of attention.
      context: largest number of tokens.
      vocabulary: number of different tokens.
      normalization: what each branch's input, and the logits' input, pass through:
        ``"layer_norm"``; ``"none"``; ``"dyt"`` or ``"derf"``, elementwise functions of
        ``pointwise_norms``; or ``"nf"``, a known factor, in blocks with standardized matrices.
      alpha: with ``"nf"``, the standard deviation that each branch adds at most.
      pointwise_alpha: with ``"dyt"`` and ``"derf"``, where their ``alpha`` starts.
      scales_embedding: whether a learned scalar follows the embeddings, which starts where their
        sum has variance one; None for all but ``"layer_norm"``, as GPT-2 has none.

    Raises:
      InputError: no such normalization, numbers out of their ranges, or a width that the heads do
        not divide.
    """

    width: int
    layers: int
    heads: int
    context: int
    vocabulary: int = 256
    normalization: str = "layer_norm"
    alpha: float = 0.2
    pointwise_alpha: float = 0.5
    scales_embedding: bool | None = None

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.normalization not in NORMALIZATIONS:
            known = nearest(self.normalization, NORMALIZATIONS)
            raise InputError(f"no normalization {self.normalization!r}; {known}")
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} is to be divided among {self.heads} heads: take a multiple"
            )

    @property
    def has_embedding_scale(self) -> bool:
        """Whether a learned scalar follows the embeddings."""
        if self.scales_embedding is None:
            return self.normalization != "layer_norm"
        return self.scales_embedding

    @property
    def variances(self) -> np.ndarray:
        """The residual stream's planned variance before each branch and after all.

        ``[2 * layers + 1]``, with ``"nf"`` and skip gains of one at initialization. Each branch is
        counted as adding ``alpha**2`` (NF-ResNets, section 3). Of attention that is the upper
        bound, met where all tokens of a context are alike: a mean of ``n`` independent tokens has
        ``1 / n`` of their variance. As no factor fits both, the plan takes the bound, and the
        true variance is between one and the plan.
        """
        return 1 + self.alpha**2 * np.arange(2 * self.layers + 1)


class WSLinear(hk.Module):
    """A layer with scaled weight standardization (NF-ResNets, section 4.2).

    Parameters, float32: ``w`` ``[I, O]``, ``gain`` ``[O]`` and ``bias`` ``[O]``.
    """

    def __init__(self, features: int, name: str | None = None):
        super().__init__(name)
        self._features = features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., I]`` to ``[..., O]``; a variance of one stays one."""
        shape = (x.shape[-1], self._features)
        w = hk.get_parameter("w", shape, init=Normal(shape[0] ** -0.5))
        gain = hk.get_parameter("gain", shape[1:], init=jnp.ones)
        bias = hk.get_parameter("bias", shape[1:], init=jnp.zeros)
        return x @ layers.standardize(w, gain).astype(x.dtype) + bias.astype(x.dtype)


class Attention(hk.Module):
    """Causal attention of several heads (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    Args:
      heads: their number.
      linear: makes the layers of queries, keys and values.
      output: makes the last layer.
    """

    def __init__(self, heads: int, linear: MakeLinear, output: MakeLinear, name: str | None = None):
        super().__init__(name)
        self._heads, self._linear, self._output = heads, linear, output

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, T, C]`` to ``[N, T, C]``: each token sees itself and those before it."""
        *shape, width = x.shape

        def project(name: str) -> jax.Array:
            projected: jax.Array = self._linear(width, name=name)(x)
            return projected.reshape(*shape, self._heads, width // self._heads)

        mixed = jax.nn.dot_product_attention(
            project("query"), project("key"), project("value"), is_causal=True
        )
        out: jax.Array = self._output(width, name="out")(mixed.reshape(x.shape))
        return out


class Perceptron(hk.Module):
    """Two layers, of which the first is four times as wide, with GELU between them."""

    def __init__(
        self,
        linear: MakeLinear,
        output: MakeLinear,
        activation: layers.Activation,
        name: str | None = None,
    ):
        super().__init__(name)
        self._linear, self._output, self._activation = linear, output, activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., C]`` to ``[..., C]``."""
        width = x.shape[-1]
        hidden = self._activation(self._linear(4 * width, name="up")(x))
        out: jax.Array = self._output(width, name="down")(hidden)
        return out


class Block(hk.Module):
    """Adds attention, then a perceptron, to the residual stream.

    It computes ``x + branch(normalize(x))`` twice; with ``"nf"``
    ``x + alpha * skip_gain * branch(beta * x)``, in which ``beta`` is one over the standard
    deviation planned for ``x``, and ``skip_gain`` a scalar that starts at zero (SkipInit, De and
    Smith 2020, arXiv:2002.10444).
    """

    def __init__(self, config: GPTConfig, name: str | None = None):
        super().__init__(name)
        self._config = config

    def __call__(self, x: jax.Array, variances: np.ndarray) -> jax.Array:
        """Maps ``[N, T, C]`` to ``[N, T, C]``.

        ``variances`` ``[2]`` are those planned for ``x`` before each branch; only ``"nf"`` needs
        them.
        """
        config = self._config
        if config.normalization == "nf":
            linear: MakeLinear = WSLinear
            output: MakeLinear = WSLinear
            gelu = layers.scaled_activation("gelu")
        else:
            linear = functools.partial(layers.Linear, std=_STD)
            # GPT-2 divides by the root of the number of branches.
            output = functools.partial(layers.Linear, std=_STD / (2 * config.layers) ** 0.5)
            gelu = jax.nn.gelu
        attention = Attention(config.heads, linear, output, name="attention")
        perceptron = Perceptron(linear, output, gelu, name="perceptron")
        branches: tuple[Any, ...] = (attention, perceptron)
        for branch, variance in zip(branches, variances, strict=True):
            out = branch(normalize(x, config, variance, f"{branch.name}_norm"))
            if config.normalization == "nf":
                skip_gain = hk.get_parameter(f"{branch.name}_skip_gain", (), init=jnp.zeros)
                out *= (config.alpha * skip_gain).astype(x.dtype)
            x += out
        return x


def normalize(x: jax.Array, config: GPTConfig, variance: float, name: str) -> jax.Array:
    """Applies the network's normalization to ``x`` ``[..., C]`` of a planned variance."""
    match config.normalization:
        case "layer_norm":
            return hk.LayerNorm(-1, create_scale=True, create_offset=True, name=name)(x)
        case "dyt":
            return DyT(config.pointwise_alpha, name=name)(x)
        case "derf":
            return Derf(config.pointwise_alpha, name=name)(x)
        case "nf":
            return x * jnp.asarray(variance**-0.5, x.dtype)
        case _:
            return x


class GPT(hk.Module):
    """A GPT that predicts each next token.

    The learned scalar after the embeddings is that of Zhu et al. 2025, arXiv:2503.10622, section 5,
    on language models: without it, activations are too small for what replaces normalization.
    """

    def __init__(self, config: GPTConfig, name: str | None = "gpt"):
        super().__init__(name)
        self._config = config

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits ``[N, T, vocabulary]`` of the token after each of ``tokens`` ``[N, T]``.

        Tokens are integers.

        Raises:
          InputError: there are more tokens than ``context``.
        """
        config, length = self._config, tokens.shape[-1]
        if length > config.context:
            raise InputError(f"{length} tokens, but the context is {config.context} at most")
        embed = functools.partial(hk.Embed, embed_dim=config.width, w_init=Normal(_STD))
        x = embed(config.vocabulary, name="tokens")(tokens)
        x += embed(config.context, name="positions")(jnp.arange(length))
        if config.has_embedding_scale:
            start = hk.initializers.Constant((2 * _STD**2) ** -0.5)
            x *= hk.get_parameter("embedding_scale", (), init=start)
        variances = config.variances
        for layer in range(config.layers):
            x = Block(config, name=f"block_{layer}")(x, variances[2 * layer : 2 * layer + 2])
        x = normalize(x, config, variances[-1], "final_norm")
        return layers.Linear(config.vocabulary, std=_STD, name="logits")(x)
