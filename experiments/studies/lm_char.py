"""Tests whether AGC widens the range of learning rates that train a small GPT.

NFNets (Brock et al. 2021b, arXiv:2102.06171, section 4) introduce AGC for image networks without
normalization; this GPT keeps its LayerNorm, so that nothing follows for networks without any.

    python -m experiments.studies.lm_char --budget=cpu

Design: SGD and AdamW, each without clipping, with the gradient's global norm clipped, and with AGC,
train on the bytes of Python's standard library over a grid of learning rates and batch sizes
(``experiments/configs/lm.py``). Each run sees the same number of bytes; no threshold is tuned.
A learning rate trains if its final test loss is within a tolerance of the best of any clipping with
the same optimizer and batch size.
"""

import functools
import itertools
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from nfnets_jax import optax_agc

from ..configs import lm
from . import command, grid, results

_BYTES = 256
_COLORS = {"none": "C7", "global norm": "C0", "AGC": "C1"}


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Trains the GPT at every point of the grid; needs no data but Python itself."""
    del data_dir
    config = lm.get_config(budget)
    members = [
        {"optimizer": optimizer, "batch_size": size, "learning_rate": rate, "clipping": clipping}
        for optimizer, rates in config.learning_rates.items()
        for size, rate, clipping in itertools.product(config.batch_sizes, rates, config.clipping)
    ]
    text = read_text(config.text_bytes)
    fields = ("width", "layers", "context", "train_bytes", "seed")
    conditions = {"budget": budget, **{name: config[name] for name in fields}}
    conditions["text_crc32"] = zlib.crc32(text.train.tobytes())
    # Cached, so that all learning rates share a compiled program.
    cached_trainer = functools.cache(functools.partial(trainer, config))

    def run(settings: grid.Settings) -> dict[str, float]:
        train = cached_trainer(settings["optimizer"], settings["clipping"], settings["batch_size"])
        train_loss, test_loss = train(text, settings["learning_rate"])
        return {"train_loss": float(train_loss), "test_loss": float(test_loss)}

    rows = grid.run_grid(workdir, conditions, members, run)
    conditions["parameters"] = count_parameters(config)
    conditions["thresholds"] = ", ".join(f"{k} {v:g}" for k, v in config.clipping.items() if v)
    return results.Results(
        conditions,
        rows,
        tables=[range_table(rows, config.tolerance), _loss_table(rows)],
        pictures={"loss": _draw(rows)},
    )


class Text(NamedTuple):
    """Bytes to train on and to test on, uint8 ``[N]`` each."""

    train: Any
    test: Any


def read_text(max_bytes: int) -> Text:
    """Reads the standard library's sources in order of their names; a tenth of the files tests."""
    library = Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if not name.startswith(("site-packages/", "test/")):
            parts[zlib.crc32(name.encode()) % 10 == 0].append(path.read_bytes())
    train, test = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    return Text(train[:max_bytes], test[:max_bytes])


def transformer(tokens: jax.Array, config: ConfigDict) -> jax.Array:
    """Computes logits ``[N, T, 256]`` of the byte that follows each of ``tokens`` ``[N, T]``.

    The network is GPT-2 (Radford et al. 2019, section 2.3) without dropout.
    """
    length = tokens.shape[-1]
    normal = hk.initializers.RandomNormal(0.02)
    x = hk.Embed(_BYTES, config.width, w_init=normal, name="tokens")(tokens)
    x += hk.Embed(config.context, config.width, w_init=normal, name="positions")(jnp.arange(length))
    mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
    # Each block adds to the residual stream twice.
    last = hk.initializers.RandomNormal(0.02 / (2 * config.layers) ** 0.5)

    def normalized(x: jax.Array) -> jax.Array:
        return hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)

    for _ in range(config.layers):
        attention = hk.MultiHeadAttention(
            config.heads, config.width // config.heads, model_size=config.width, w_init=normal
        )
        y = normalized(x)
        x += attention(y, y, y, mask)
        y = jax.nn.gelu(hk.Linear(4 * config.width, w_init=normal)(normalized(x)))
        x += hk.Linear(config.width, w_init=last)(y)
    return hk.Linear(_BYTES, w_init=normal, name="logits")(normalized(x))


def _network(config: ConfigDict) -> hk.Transformed:
    return hk.without_apply_rng(hk.transform(functools.partial(transformer, config=config)))


def count_parameters(config: ConfigDict) -> int:
    """Returns the number of parameters of the network."""
    tokens = jax.ShapeDtypeStruct((1, config.context), jnp.int32)
    params = jax.eval_shape(_network(config).init, jax.random.key(0), tokens)
    return sum(param.size for param in jax.tree.leaves(params))


def make_optimizer(
    optimizer: str, clipping: str, config: ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Returns a recipe of ``optax_agc``, its AGC kept, removed, or replaced by a global norm."""
    recipes: dict[str, Any] = {"sgd": optax_agc.sgd_agc, "adamw": optax_agc.adamw_agc}
    threshold = config.clipping[clipping]
    recipe = recipes[optimizer](
        learning_rate,
        weight_decay=config.weight_decay[optimizer],
        clipping=threshold if clipping == "AGC" else None,
        unit_axes=optax_agc.haiku,
    )
    if clipping == "global norm":
        return optax.chain(optax.clip_by_global_norm(threshold), recipe)
    return recipe


# Called as ``train(text, learning_rate)``; returns train loss and test loss.
Trainer = Callable[[Text, float], tuple[jax.Array, jax.Array]]


def trainer(config: ConfigDict, optimizer: str, clipping: str, batch_size: int) -> Trainer:
    """Returns a training run that is compiled once for all learning rates.

    Its losses are cross-entropies in nats per byte: the mean over the last tenth of the training
    steps, and the mean over the test sequences after training.
    """
    network = _network(config)
    steps = max(config.train_bytes // (batch_size * config.context), 1)

    def loss_fn(params: hk.Params, sequences: jax.Array) -> jax.Array:
        logits = network.apply(params, sequences[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:])
        return jnp.mean(losses)

    def sample(text: jax.Array, key: jax.Array, count: int) -> jax.Array:
        starts = jax.random.randint(key, (count, 1), 0, len(text) - config.context)
        return text[starts + jnp.arange(config.context + 1)].astype(jnp.int32)

    @jax.jit
    def train(text: Text, learning_rate: jax.Array) -> tuple[jax.Array, jax.Array]:
        warmup = max(round(config.warmup_fraction * steps), 1)
        shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, max(steps, warmup + 1))
        transformation = make_optimizer(
            optimizer, clipping, config, lambda step: learning_rate * shape(step)
        )
        init_key, train_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
        params = network.init(init_key, jnp.zeros((1, config.context), jnp.int32))

        def update(carry: Any, step: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            batch = sample(text.train, jax.random.fold_in(train_key, step), batch_size)
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = transformation.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        start = (params, transformation.init(params))
        (params, _), losses = lax.scan(update, start, jnp.arange(steps))
        test = loss_fn(params, sample(text.test, test_key, config.test_sequences))
        return jnp.mean(losses[-max(steps // 10, 1) :]), test

    return train


class Range(NamedTuple):
    """Neighbouring learning rates that train: the lowest, the highest and their number."""

    lowest: float
    highest: float
    rates: int


def stable_range(rows: Sequence[grid.Row], max_loss: float) -> Range | None:
    """Returns the longest run of neighbouring learning rates with a test loss up to ``max_loss``.

    Returns None if no rate trains.
    """
    longest: list[float] = []
    current: list[float] = []
    for row in sorted(rows, key=lambda row: row["learning_rate"]):
        trains = row["test_loss"] is not None and row["test_loss"] <= max_loss
        current = [*current, row["learning_rate"]] if trains else []
        longest = max(longest, current, key=len)
    return Range(longest[0], longest[-1], len(longest)) if longest else None


def range_table(rows: Sequence[grid.Row], tolerance: float) -> str:
    """Returns the range of learning rates that train, for each setup and clipping, in Markdown."""
    lines = []
    for optimizer, batch_size, panel in _panels(rows):
        best = min((row["test_loss"] for row in panel if row["test_loss"] is not None), default=0)
        for clipping in _COLORS:
            own = [row for row in panel if row["clipping"] == clipping]
            found = stable_range(own, best + tolerance)
            shown = (f"{found.lowest:g} to {found.highest:g}", found.rates) if found else ("", 0)
            losses = [row["test_loss"] for row in own if row["test_loss"] is not None]
            lines.append((optimizer, batch_size, clipping, *shown, min(losses, default=None)))
    return results.table(
        f"Learning rates with a final test loss within {tolerance:g} nats per byte of the best of "
        "any clipping: the longest run of neighbours in the grid.",
        ("optimizer", "batch size", "clipping", "range", "rates", "best test loss"),
        lines,
    )


def _loss_table(rows: Sequence[grid.Row]) -> str:
    lines = []
    for optimizer, batch_size, panel in _panels(rows):
        for rate in sorted({row["learning_rate"] for row in panel}):
            at = {x["clipping"]: x["test_loss"] for x in panel if x["learning_rate"] == rate}
            lines.append((optimizer, batch_size, rate, *(at[clipping] for clipping in _COLORS)))
    return results.table(
        "Final test loss, nats per byte; a dash marks a run that diverged.",
        ("optimizer", "batch size", "learning rate", *_COLORS),
        lines,
    )


def _draw(rows: Sequence[grid.Row]) -> Figure:
    """Draws final test loss by learning rate, a panel for each optimizer and batch size."""
    panels = list(_panels(rows))
    figure = Figure(figsize=(4 * len(panels), 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (optimizer, batch_size, panel) in zip(axes, panels, strict=True):
        finite = [row for row in panel if row["test_loss"] is not None]
        for clipping, color in _COLORS.items():
            own = [row for row in finite if row["clipping"] == clipping]
            rates, losses = ([row[name] for row in own] for name in ("learning_rate", "test_loss"))
            axis.plot(rates, losses, ".-", color=color, label=clipping)
        axis.set(xscale="log", xlabel="learning rate", title=f"{optimizer}, batch {batch_size}")
        # The axis ends above chance, or the largest losses would hide the rest.
        lowest = min((row["test_loss"] for row in finite), default=0)
        axis.set_ylim(lowest - 0.1, max(lowest + 1, np.log(_BYTES)))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("final test loss (nats per byte)")
    axes[0].legend()
    return figure


def _panels(rows: Sequence[grid.Row]) -> Iterator[tuple[str, int, list[grid.Row]]]:
    """Yields the rows of each optimizer and batch size."""
    for optimizer, batch_size in dict.fromkeys((r["optimizer"], r["batch_size"]) for r in rows):
        own = [r for r in rows if (r["optimizer"], r["batch_size"]) == (optimizer, batch_size)]
        yield optimizer, batch_size, own


if __name__ == "__main__":
    command.run("lm_char", __doc__, study)
