"""AGC outside of vision: a small GPT on the sources of Python's standard library.

    python -m experiments.studies.lm_char --budget=smoke|cpu|gpu --workdir=DIR

SGD and AdamW, without clipping, with the gradient's global norm clipped, and with AGC, over
learning rates and batch sizes (``experiments/configs/lm.py``), each on as many bytes. Writes
the final loss against the learning rate as ``loss.png``, all of it as ``results.csv``, and
``report.md``, which names the widest range of learning rates that train. It needs no data but
Python itself.
"""

import functools
import itertools
import sys
import sysconfig
import zlib
from collections.abc import Mapping, Sequence
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

from experiments.configs import lm
from experiments.studies import grid
from nfnets_jax import optax_agc
from nfnets_jax.atomic import atomic_write
from nfnets_jax.errors import InputError

_BYTES = 256
_COLORS = {"none": "C7", "global norm": "C0", "AGC": "C1"}


def main() -> None:
    """Runs the study that the command line asks for."""
    arguments = grid.parse(__doc__.splitlines()[0], "lm_char")
    config = lm.get_config(arguments.budget)
    names = ("optimizer", "batch_size", "learning_rate", "clipping")
    members = [
        dict(zip(names, values, strict=True))
        for optimizer, rates in config.learning_rates.items()
        for values in itertools.product([optimizer], config.batch_sizes, rates, config.clipping)
    ]
    text = read_text(config.text_bytes)
    # One learning rate after the other, what is compiled is used again.
    trainers = functools.cache(functools.partial(trainer, config))
    fields = ("width", "layers", "context", "train_bytes", "seed")
    common = {"budget": arguments.budget, **{name: config[name] for name in fields}}
    common["text_crc32"] = zlib.crc32(text.train.tobytes())

    def run(settings: Mapping[str, Any]) -> dict[str, float]:
        train = trainers(*(settings[name] for name in ("optimizer", "clipping", "batch_size")))
        train_loss, test_loss = train(text, settings["learning_rate"])
        return {"train_loss": float(train_loss), "test_loss": float(test_loss)}

    try:
        rows = grid.run_grid(arguments.workdir, common, members, run)
    except InputError as error:
        sys.exit(f"error: {error}")
    draw(rows, arguments.workdir / "loss.png")
    common["parameters"] = count_parameters(config)
    title = "Clipping of a small GPT: which learning rates train"
    grid.write_report(arguments.workdir, title, rows, report(rows, config), common)


class Text(NamedTuple):
    """Bytes, uint8 ``[N]``, to learn from and to be tested on."""

    train: Any
    test: Any


def read_text(most_bytes: int) -> Text:
    """The standard library's sources in the order of their names; a tenth of the files tests."""
    library = Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if not name.startswith(("site-packages/", "test/")):
            parts[zlib.crc32(name.encode()) % 10 == 0].append(path.read_bytes())
    train, test = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    return Text(train[:most_bytes], test[:most_bytes])


def transformer(tokens: jax.Array, config: ConfigDict) -> jax.Array:
    """Logits ``[N, T, 256]`` of the byte after each of ``[N, T]``: GPT-2's layout, with LayerNorm.

    The block is that of Radford et al. 2019, section 2.3, without dropout.
    """
    length = tokens.shape[-1]
    normal = hk.initializers.RandomNormal(0.02)
    x = hk.Embed(_BYTES, config.width, w_init=normal, name="tokens")(tokens)
    x += hk.Embed(config.context, config.width, w_init=normal, name="positions")(jnp.arange(length))
    mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
    # Each block adds twice to what it is given.
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
    """Of the network that a configuration describes."""
    tokens = jax.ShapeDtypeStruct((1, config.context), jnp.int32)
    params = jax.eval_shape(_network(config).init, jax.random.key(0), tokens)
    return sum(param.size for param in jax.tree.leaves(params))


def make_optimizer(
    optimizer: str, clipping: str, config: ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """The recipe of ``optax_agc``, with AGC or something else in its place."""
    recipes: dict[str, Any] = {"sgd": optax_agc.sgd_agc, "adamw": optax_agc.adamw_agc}
    limit = config.clipping[clipping]
    made = recipes[optimizer](
        learning_rate,
        weight_decay=config.weight_decay[optimizer],
        clipping=limit if clipping == "AGC" else None,
        unit_axes=optax_agc.haiku,
    )
    if clipping == "global norm":
        return optax.chain(optax.clip_by_global_norm(limit), made)
    return made


def trainer(config: ConfigDict, optimizer: str, clipping: str, batch_size: int) -> Any:
    """``(text, learning_rate) -> (train loss, test loss)``, compiled once for all learning rates.

    Losses are cross-entropies in nats a byte: the mean over the last tenth of the training steps,
    and that of the test sequences in the end.
    """
    network = _network(config)
    steps = max(config.train_bytes // (batch_size * config.context), 1)

    def loss_fn(params: hk.Params, sequences: jax.Array) -> jax.Array:
        logits = network.apply(params, sequences[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:])
        return jnp.mean(losses)

    def some(text: jax.Array, key: jax.Array, count: int) -> jax.Array:
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
            batch = some(text.train, jax.random.fold_in(train_key, step), batch_size)
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = transformation.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        start = (params, transformation.init(params))
        (params, _), losses = lax.scan(update, start, jnp.arange(steps))
        test = loss_fn(params, some(text.test, test_key, config.test_sequences))
        return jnp.mean(losses[-max(steps // 10, 1) :]), test

    return train


class Range(NamedTuple):
    """Neighbouring learning rates that train."""

    lowest: float
    highest: float
    rates: int


def stable_range(rows: Sequence[grid.Row], largest_loss: float) -> Range | None:
    """The longest run of neighbouring learning rates with a test loss up to the largest."""
    best: list[float] = []
    current: list[float] = []
    for row in sorted(rows, key=lambda row: row["learning_rate"]):
        trains = row["test_loss"] is not None and row["test_loss"] <= largest_loss
        current = [*current, row["learning_rate"]] if trains else []
        best = max(best, current, key=len)
    return Range(best[0], best[-1], len(best)) if best else None


def report(rows: Sequence[grid.Row], config: ConfigDict) -> str:
    """The verdict, the picture and the tables, in Markdown."""
    verdicts, ranges, losses = [], [], []
    for (optimizer, batch_size), panel in _panels(rows).items():
        finite = [row["test_loss"] for row in panel if row["test_loss"] is not None]
        if not finite:
            verdicts.append(f"{optimizer}, batch {batch_size}: nothing trained.")
            continue
        largest = min(finite) + config.tolerance
        found = {
            clipping: stable_range(_of(panel, clipping), largest) for clipping in config.clipping
        }
        widest = max(r.rates if r else 0 for r in found.values())
        names = [name for name, r in found.items() if r and r.rates == widest]
        tied = "tied: " if len(names) > 1 else ""
        verdicts.append(f"{optimizer}, batch {batch_size}: {tied}{', '.join(names)}")
        for clipping, r in found.items():
            own = [x["test_loss"] for x in _of(panel, clipping) if x["test_loss"] is not None]
            span = f"{r.lowest:g} to {r.highest:g}" if r else "none"
            best = min(own, default=None)
            ranges.append([optimizer, batch_size, clipping, span, r.rates if r else 0, best])
        for rate in sorted({row["learning_rate"] for row in panel}):
            at = {
                row["clipping"]: row["test_loss"] for row in panel if row["learning_rate"] == rate
            }
            losses.append([optimizer, batch_size, rate, *(at[name] for name in config.clipping)])
    what = (
        f"A learning rate trains if its final test loss is within {config.tolerance} nats of the "
        "best of any clipping with the same optimizer and batch size. One seed a run; no clipping "
        "was tuned: "
        + ", ".join(f"{name} {limit:g}" for name, limit in config.clipping.items() if limit)
        + "."
    )
    first = ["optimizer", "batch size"]
    return "\n\n".join(
        [
            "Widest range of learning rates that train:\n\n"
            + "\n".join(f"- {verdict}" for verdict in verdicts),
            what,
            "![Final test loss against learning rate](loss.png)",
            grid.markdown_table([*first, "clipping", "range", "rates", "best loss"], ranges),
            "Final test loss, nats a byte; – is a run that diverged:",  # noqa: RUF001
            grid.markdown_table([*first, "learning rate", *config.clipping], losses),
        ]
    )


def draw(rows: Sequence[grid.Row], path: Path) -> None:
    """Final test loss against learning rate, a panel for each optimizer and batch size."""
    panels = _panels(rows)
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, ((optimizer, batch_size), panel) in zip(axes, panels.items(), strict=True):
        for clipping, color in _COLORS.items():
            own = [row for row in _of(panel, clipping) if row["test_loss"] is not None]
            rates, losses = ([row[name] for row in own] for name in ("learning_rate", "test_loss"))
            axis.plot(rates, losses, ".-", color=color, label=clipping)
        axis.set(xscale="log", xlabel="learning rate", title=f"{optimizer}, batch {batch_size}")
        # What diverges to a large loss would hide the rest.
        low = min((row["test_loss"] for row in panel if row["test_loss"] is not None), default=0)
        axis.set_ylim(low - 0.1, max(low + 1, np.log(_BYTES)))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("final test loss (nats a byte)")
    axes[0].legend()
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _panels(rows: Sequence[grid.Row]) -> dict[tuple[str, int], list[grid.Row]]:
    panels: dict[tuple[str, int], list[grid.Row]] = {}
    for row in rows:
        panels.setdefault((row["optimizer"], row["batch_size"]), []).append(row)
    return panels


def _of(rows: Sequence[grid.Row], clipping: str) -> list[grid.Row]:
    return [row for row in rows if row["clipping"] == clipping]


if __name__ == "__main__":
    main()
