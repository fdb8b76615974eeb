"""The GPT compared with Haiku's layers, and its normalizer-free form with the planned variance."""

import functools
import re
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets_jax import optax_agc
from nfnets_jax.errors import InputError
from nfnets_jax.models.initialization import initialize
from nfnets_jax.models.transformer import GPT, NORMALIZATIONS, Block, GPTConfig

CONFIG = GPTConfig(width=16, layers=1, heads=2, context=12, vocabulary=11)
TOKENS = jax.random.randint(jax.random.key(0), (3, 12), 0, 11)


def network(config: GPTConfig) -> Any:
    return hk.without_apply_rng(hk.transform(lambda tokens: GPT(config)(tokens)))


def new_params(config: GPTConfig) -> hk.MutableParams:
    return initialize(lambda: GPT(config)(TOKENS), jax.random.key(0))[0]


def reference(tokens: jax.Array) -> jax.Array:
    """Computes GPT-2 by Haiku's own layers, named as ours."""
    x = hk.Embed(11, 16, name="tokens")(tokens)
    x += hk.Embed(12, 16, name="positions")(jnp.arange(12))
    mask = jnp.tril(jnp.ones((1, 1, 12, 12), bool))
    norm = functools.partial(hk.LayerNorm, -1, create_scale=True, create_offset=True)
    for layer in range(1):
        y = norm(name=f"block_{layer}_attention_norm")(x)
        start = hk.initializers.VarianceScaling()
        attention = hk.MultiHeadAttention(2, 8, w_init=start, name=f"block_{layer}_attention")
        x += attention(y, y, y, mask)
        y = norm(name=f"block_{layer}_perceptron_norm")(x)
        y = jax.nn.gelu(hk.Linear(64, name=f"block_{layer}_perceptron_up")(y))
        x += hk.Linear(16, name=f"block_{layer}_perceptron_down")(y)
    return hk.Linear(11, name="logits")(norm(name="final_norm")(x))


def test_with_layer_normalization_it_is_gpt2() -> None:
    plain: Any = hk.without_apply_rng(hk.transform(reference))
    theirs = jax.jit(plain.init)(jax.random.key(1), TOKENS)
    # Gains and biases start at one and zero, which would hide a mistake.
    theirs = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), theirs)
    ours = new_params(CONFIG)
    renamed = {module: theirs[haikus_name(module)] for module in ours}
    logits = jax.jit(network(CONFIG).apply)(renamed, TOKENS)
    np.testing.assert_allclose(logits, jax.jit(plain.apply)(theirs, TOKENS), atol=1e-5)


def haikus_name(module: str) -> str:
    """Returns the name in ``reference`` of a module of ours, ``gpt/block_0/attention/out``."""
    name = module.replace("/~/", "/").removeprefix("gpt/").replace("/", "_")
    name = name.replace("attention_out", "attention_linear")
    return re.sub(r"attention_(?!norm)", "attention/", name)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_form_starts_at_chance_and_sees_no_later_token(normalization: str) -> None:
    config = GPTConfig(16, 1, 2, 12, 11, normalization)
    params = opened(new_params(config))
    apply = jax.jit(network(config).apply)
    logits, changed = apply(params, TOKENS), apply(params, TOKENS.at[:, 6:].set(0))
    log = np.log(np.sum(np.exp(logits), axis=-1, keepdims=True)) - logits
    assert np.take_along_axis(log, np.asarray(TOKENS)[..., None], -1).mean() == pytest.approx(
        np.log(11), abs=0.1
    )
    np.testing.assert_allclose(logits[:, :6], changed[:, :6], atol=1e-6)
    assert np.abs(logits[:, 6:] - changed[:, 6:]).max() > 1e-4


def test_scaled_embeddings_are_an_option_of_every_form() -> None:
    for normalization in NORMALIZATIONS:
        for scales, expected in (
            (None, normalization != "layer_norm"),
            (True, True),
            (False, False),
        ):
            config = GPTConfig(16, 1, 2, 12, 11, normalization, scales_embedding=scales)
            shapes = jax.eval_shape(network(config).init, jax.random.key(0), TOKENS)
            assert ("embedding_scale" in shapes.get("gpt", {})) == expected


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_agc_knows_the_units_of_every_form(normalization: str) -> None:
    params = new_params(GPTConfig(16, 1, 2, 12, 11, normalization))
    ratios = jax.eval_shape(
        lambda x: optax_agc.unit_ratios(x, x, unit_axes=optax_agc.haiku), params
    )
    units = {
        f"{module.split('/')[-1]}/{name}": ratio.size
        for module, values in ratios.items()
        for name, ratio in values.items()
    }
    assert units["tokens/embeddings"] == units["logits/w"] == 11
    assert units["up/w"] == 64 and units["down/w"] == units["query/w"] == 16
    vectors = {size for name, size in units.items() if not name.endswith(("/w", "embeddings"))}
    assert vectors == {1}


def opened(params: hk.Params) -> hk.MutableParams:
    """Sets skip gains to one."""
    return {
        module: {k: jnp.ones_like(v) if "skip_gain" in k else v for k, v in values.items()}
        for module, values in params.items()
    }


def stream_variances(config: GPTConfig, x: jax.Array, change: Any = None) -> np.ndarray:
    """Returns the variance before each block and after all, mean over tokens, ``[layers + 1]``."""

    def run(x: jax.Array) -> list[jax.Array]:
        stream = [x]
        for layer in range(config.layers):
            variances = config.variances[2 * layer : 2 * layer + 2]
            stream.append(Block(config, name=f"block_{layer}")(stream[-1], variances))
        return stream

    blocks: Any = hk.without_apply_rng(hk.transform(run))
    params = opened(initialize(lambda: run(x), jax.random.key(1))[0])
    stream = jax.jit(blocks.apply)(change(params) if change else params, x)
    return np.array([np.mean(np.square(each)) for each in stream])


NF = GPTConfig(256, 2, 4, 32, normalization="nf", alpha=0.5)


def test_tokens_that_are_alike_have_the_planned_variance() -> None:
    """Their mean is any one of them, so that attention keeps their variance."""
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (64, 1, 256)), (64, 8, 256))
    np.testing.assert_allclose(stream_variances(NF, x), NF.variances[::2], rtol=0.05)


def test_independent_tokens_have_what_a_uniform_mean_leaves() -> None:
    """The first block's attention adds the mean of 1 / n over positions n; its perceptron all."""

    def without_queries(params: hk.Params) -> hk.Params:
        return {
            module: jax.tree.map(jnp.zeros_like, values) if "query" in module else values
            for module, values in params.items()
        }

    x = jax.random.normal(jax.random.key(0), (8, 32, 256))
    variance = stream_variances(NF, x, without_queries)[1]
    left = np.mean(1 / np.arange(1, 33))
    perceptron_input = 1 + NF.alpha**2 * left
    assert variance == pytest.approx(
        perceptron_input + NF.alpha**2 * gelu_variance(perceptron_input / NF.variances[1]), rel=0.02
    )
    # Attention that is not uniform is between this and the plan.
    measured = stream_variances(NF, x)
    assert variance < measured[1] < NF.variances[2]
    assert (measured[1:] < NF.variances[2::2]).all()
    assert (measured > NF.variances[::2] - NF.alpha**2 * np.arange(3) - 0.05).all()


def gelu_variance(variance: float) -> float:
    """Returns the variance of scaled GELU of Gaussian numbers, by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    values = 1.7015043497085571 * np.asarray(jax.nn.gelu(jnp.asarray(points * variance**0.5)))
    weights /= weights.sum()
    return float(weights @ values**2 - (weights @ values) ** 2)


def test_the_normalizer_free_form_starts_as_its_embeddings() -> None:
    """Skip gains start at zero, so that a second block changes nothing."""
    one, two = (GPTConfig(16, layers, 2, 12, 11, "nf") for layers in (1, 2))
    params = new_params(two)
    logits = [jax.jit(network(config).apply)(params, TOKENS) for config in (one, two)]
    factor = (one.variances[-1] / two.variances[-1]) ** 0.5
    np.testing.assert_allclose(logits[1], factor * logits[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization": "layernorm"}, "no normalization 'layernorm'"),
        ({"heads": 3}, "width 16 is to be divided among 3 heads"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_a_wrong_option_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPTConfig(**{"width": 16, "layers": 1, "heads": 2, "context": 8, **change})


def test_a_text_longer_than_the_context_is_refused() -> None:
    with pytest.raises(InputError, match="12 tokens, but the context is 8 at most"):
        new_params(GPTConfig(16, 1, 2, 8, 11))
