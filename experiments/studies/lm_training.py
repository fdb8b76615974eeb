"""Trains small GPTs on the sources of Python's standard library, for the study ``lm``."""

import functools
import itertools
import sysconfig
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from nfnets_jax import optax_agc
from nfnets_jax.models.initialization import initialize
from nfnets_jax.models.transformer import GPT, GPTConfig


class Text(NamedTuple):
    """Bytes to train on, to tune on and to test on, uint8 ``[N]`` each; the last two equally long.

    They are of different files.
    """

    train: np.ndarray
    held_out: np.ndarray
    test: np.ndarray


def read_text(max_bytes: int) -> Text:
    """Reads the standard library's sources in order of their names.

    A tenth of the files are held out, and a tenth test.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    parts: list[list[bytes]] = [[] for _ in range(10)]
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if not name.startswith(("site-packages/", "test/")):
            parts[zlib.crc32(name.encode()) % 10].append(path.read_bytes())
    test, held_out = (np.frombuffer(b"".join(part), np.uint8) for part in parts[:2])
    train = np.frombuffer(b"".join(itertools.chain(*parts[2:])), np.uint8)
    shorter = min(len(test), len(held_out), max_bytes)
    return Text(train[:max_bytes], held_out[:shorter], test[:shorter])


# The options of each network that is compared.
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "layer_norm": {"normalization": "layer_norm"},
    "scaled_layer_norm": {"normalization": "layer_norm", "scales_embedding": True},
    **{name: {"normalization": name} for name in ("none", "nf", "dyt", "derf")},
}


def network(config: ConfigDict, normalization: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the GPT as a function of tokens ``[N, T]``, to be transformed."""
    sizes = {name: config[name] for name in ("width", "layers", "heads", "context")}
    options = GPTConfig(**sizes, alpha=config.alpha, **NETWORKS[normalization])
    return lambda tokens: GPT(options)(tokens)


def count_parameters(config: ConfigDict, normalization: str) -> int:
    """Returns the number of parameters of a network."""
    tokens = jax.ShapeDtypeStruct((1, config.context), jnp.int32)
    init = hk.transform(network(config, normalization)).init
    params = jax.eval_shape(init, jax.random.key(0), tokens)
    return sum(param.size for param in jax.tree.leaves(params))


def make_optimizer(
    clipping: str, threshold: jax.Array, learning_rate: optax.Schedule, config: ConfigDict
) -> optax.GradientTransformation:
    """Returns AdamW of gradients that are clipped as ``config.clipping`` names it.

    AGC by unit spares the logits' matrix, as NFNets do; AGC by tensor spares nothing.
    """
    adamw = functools.partial(
        optax_agc.adamw_agc,
        learning_rate,
        config.b1,
        config.b2,
        config.weight_decay,
        clipping=None,
        unit_axes=optax_agc.haiku,
    )
    match clipping:
        case "AGC by unit":
            return adamw(clipping=threshold)
        case "AGC by tensor":
            agc = optax_agc.adaptive_grad_clip(threshold, unit_axes=_all_axes)
            return optax.chain(agc, adamw())
        case "global norm":
            return optax.chain(optax.clip_by_global_norm(threshold), adamw())
        case _:
            return adamw()


def _all_axes(path: optax_agc.Path, param: jax.Array) -> tuple[int, ...]:
    del path
    return tuple(range(param.ndim))


# Called as ``train(text, evaluated_text, threshold, learning_rate, seed)``; returns its figures.
Trainer = Callable[[np.ndarray, np.ndarray, float, float, int], dict[str, float]]


def trainer(config: ConfigDict, normalization: str, clipping: str) -> Trainer:
    """Returns a training run that is compiled once for all thresholds, rates and seeds.

    Its figures are ``loss``, the cross-entropy of the evaluated text after training, nats a byte;
    ``train_loss``, the mean over the last tenth of the steps; and ``steps_per_second``.
    """
    gpt, steps = network(config, normalization), config.steps
    warmup = max(round(config.warmup_fraction * steps), 1)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, max(steps, warmup + 1))

    def loss_fn(params: hk.Params, sequences: jax.Array) -> jax.Array:
        logits = hk.transform(gpt).apply(params, None, sequences[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:])
        return jnp.mean(losses)

    def cut(text: jax.Array, starts: jax.Array) -> jax.Array:
        return text[starts[:, None] + jnp.arange(config.context + 1)].astype(jnp.int32)

    @jax.jit
    def train(
        params: hk.Params,
        text: jax.Array,
        threshold: jax.Array,
        learning_rate: jax.Array,
        key: jax.Array,
    ) -> tuple[hk.Params, jax.Array]:
        optimizer = make_optimizer(
            clipping, threshold, lambda step: learning_rate * shape(step), config
        )

        def update(carry: Any, step: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            last = len(text) - config.context
            drawn = jax.random.randint(jax.random.fold_in(key, step), (config.batch_size,), 0, last)
            batch = cut(text, drawn)
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = lax.scan(update, (params, optimizer.init(params)), jnp.arange(steps))
        return params, jnp.mean(losses[-max(steps // 10, 1) :])

    @jax.jit
    def evaluate(params: hk.Params, text: jax.Array) -> jax.Array:
        # Evenly spaced, the same for all runs.
        starts = jnp.linspace(0, len(text) - config.context - 1, config.test_sequences)
        return loss_fn(params, cut(text, starts.astype(jnp.int32)))

    # Compiled apart from the first run, whose time would count it.
    programs: list[Any] = []

    def compile_once(arguments: tuple[Any, ...]) -> Any:
        if not programs:
            programs.append(train.lower(*arguments).compile())
        return programs[0]

    def run(
        text: np.ndarray, evaluated: np.ndarray, threshold: float, rate: float, seed: int
    ) -> dict[str, float]:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        tokens = jnp.zeros((1, config.context), jnp.int32)
        params, _ = initialize(gpt, init_key, tokens)
        limits = jnp.float32(threshold), jnp.float32(rate)
        arguments = (params, jnp.asarray(text), *limits, train_key)
        compiled = compile_once(arguments)
        start = time.perf_counter()
        params, train_loss = jax.block_until_ready(compiled(*arguments))
        seconds = time.perf_counter() - start
        loss = evaluate(params, jnp.asarray(evaluated))
        return {
            "loss": float(loss),
            "train_loss": float(train_loss),
            "steps_per_second": steps / seconds,
        }

    return run
