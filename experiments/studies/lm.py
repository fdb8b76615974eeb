"""Tests whether AGC takes the place of normalization in a small GPT.

NFNets (Brock et al. 2021b, arXiv:2102.06171, section 4) train without normalization thanks to AGC.
The prediction under test is that the same holds for transformers.

    python -m experiments.studies.lm --budget=cpu

Design: GPTs with layer normalization, with nothing in its place, as normalizer-free networks, and
with DyT and Derf (``nfnets_jax.models.transformer``) each learn the bytes of Python's standard
library by AdamW, without clipping, with the global norm clipped, with AGC by unit, as NFNets have
it, and with AGC by tensor, as DreamerV3 has it (Hafner et al. 2023, arXiv:2301.04104). For each of
these arms one seed tunes threshold and learning rate together on held-out files; other seeds train
with the best and are tested on files of a third kind. All runs take the same steps.
"""

import functools
import itertools
import json
import sysconfig
import time
import zlib
from collections.abc import Callable, Sequence
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
from scipy import stats

from nfnets_jax import optax_agc
from nfnets_jax.models.initialization import initialize
from nfnets_jax.models.transformer import GPT, GPTConfig

from ..configs import lm
from . import command, grid, results

_COLORS = {"none": "C7", "global norm": "C0", "AGC by unit": "C1", "AGC by tensor": "C3"}
_NAMES = {
    "layer_norm": "LayerNorm", "none": "nothing", "nf": "normalizer-free", "dyt": "DyT",
    "derf": "Derf",
}  # fmt: skip


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Tunes and trains every arm; needs no data but Python itself."""
    del data_dir
    config = lm.get_config(budget)
    text = read_text(config.text_bytes)
    conditions = {"budget": budget, **json.loads(json.dumps(lm.BUDGETS[budget]._asdict()))}
    conditions["text_crc32"] = zlib.crc32(text.train.tobytes())
    # Cached, so that all rates, thresholds and seeds of an arm share a compiled program.
    cached_trainer = functools.cache(functools.partial(trainer, config))

    def run(settings: grid.Settings) -> dict[str, float]:
        train = cached_trainer(settings["normalization"], settings["clipping"])
        evaluated = text.held_out if settings["text"] == "held-out" else text.test
        return train(
            text.train,
            evaluated,
            settings["threshold"],
            settings["learning_rate"],
            settings["seed"],
        )

    tuning = grid.run_grid(workdir, conditions, tuning_members(config), run)
    final = grid.run_grid(workdir, conditions, final_members(config, tuning), run)
    conditions["parameters"] = {name: count_parameters(config, name) for name in _NAMES}
    return results.Results(
        conditions,
        [*tuning, *final],
        tables=[
            loss_table(final),
            stable_table(tuning, config.tolerance),
            speed_table(final),
        ],
        pictures={"loss": _draw_final(final), "rates": _draw_rates(tuning)},
    )


def tuning_members(config: ConfigDict) -> list[grid.Settings]:
    """Returns a run of one seed for every arm, threshold and learning rate."""
    return [
        {
            "normalization": normalization,
            "clipping": clipping,
            "threshold": threshold,
            "learning_rate": rate,
            "text": "held-out",
            "seed": 0,
        }
        for normalization in config.normalizations
        for clipping, thresholds in config.clipping.items()
        for threshold, rate in itertools.product(thresholds, config.learning_rates)
    ]


def final_members(config: ConfigDict, tuning: Sequence[grid.Row]) -> list[grid.Settings]:
    """Returns the tuned runs. The arms of a seed follow one another, so that speeds compare."""
    names = ("normalization", "clipping", "threshold", "learning_rate")
    best = [best_run(rows) for rows in arms(tuning).values()]
    return [
        {**{name: row[name] for name in names}, "text": "test", "seed": seed}
        for seed in range(1, config.seeds + 1)
        for row in best
    ]


def arms(rows: Sequence[grid.Row]) -> dict[tuple[str, str], list[grid.Row]]:
    """Returns the rows of each normalization and clipping."""
    found: dict[tuple[str, str], list[grid.Row]] = {}
    for row in rows:
        found.setdefault((row["normalization"], row["clipping"]), []).append(row)
    return found


def best_run(rows: Sequence[grid.Row]) -> grid.Row:
    """Returns the run of the lowest loss; the first if all diverged."""
    return min(rows, key=lambda row: np.inf if row["loss"] is None else row["loss"])


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


def network(config: ConfigDict, normalization: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the GPT as a function of tokens ``[N, T]``, to be transformed."""
    sizes = {name: config[name] for name in ("width", "layers", "heads", "context")}
    options = GPTConfig(**sizes, normalization=normalization, alpha=config.alpha)
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

    programs: list[Any] = []

    def compile_once(arguments: tuple[Any, ...]) -> Any:
        if not programs:
            programs.append(train.lower(*arguments).compile())
        return programs[0]

    return run


class Interval(NamedTuple):
    """A mean difference of test losses and its 95% interval, nats a byte; NaN if a run diverged."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return grid.format_cell(None)
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def difference(rows: Sequence[grid.Row], reference: Sequence[grid.Row]) -> Interval:
    """Compares two arms seed by seed: equal seeds see the same batches.

    The interval is Student's: with few seeds a bootstrap's would be too narrow.
    """
    losses = [
        np.array([row["loss"] for row in sorted(each, key=lambda row: row["seed"])], float)
        for each in (rows, reference)
    ]
    differences = losses[0] - losses[1]
    mean, count = float(np.mean(differences)), len(differences)
    if count < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = stats.t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / count**0.5
    return Interval(mean, mean - float(half), mean + float(half))


def loss_table(final: Sequence[grid.Row]) -> str:
    """Returns the test loss of each tuned arm, with two comparisons, in Markdown."""
    found = arms(final)
    lines = [
        (
            _NAMES[normalization],
            clipping,
            rows[0]["threshold"] or None,
            rows[0]["learning_rate"],
            float(np.mean([np.nan if row["loss"] is None else row["loss"] for row in rows])),
            *(
                None if rows is reference else difference(rows, reference)
                for reference in (found[normalization, "none"], found["layer_norm", "none"])
            ),
        )
        for (normalization, clipping), rows in found.items()
    ]
    return results.table(
        "Test loss, nats a byte, at the threshold and learning rate with the lowest held-out "
        "loss: mean over the seeds, and mean difference with its 95% interval, seed by seed.",
        (
            "in place of normalization",
            "clipping",
            "threshold",
            "learning rate",
            "loss",
            "against no clipping",
            "against LayerNorm without clipping",
        ),
        lines,
    )


def largest_stable_rate(rows: Sequence[grid.Row], max_loss: float) -> float | None:
    """Returns the largest learning rate with a loss up to ``max_loss``; None if there is none."""
    stable = [
        row["learning_rate"] for row in rows if row["loss"] is not None and row["loss"] <= max_loss
    ]
    return max(stable, default=None)


def stable_table(tuning: Sequence[grid.Row], tolerance: float) -> str:
    """Returns the largest learning rate that trains, at the tuned threshold, in Markdown."""
    lines = []
    found = arms(tuning)
    for normalization in dict.fromkeys(name for name, _ in found):
        own = [rows for (name, _), rows in found.items() if name == normalization]
        lowest = best_run([best_run(rows) for rows in own])["loss"]
        line: list[Any] = [_NAMES[normalization], lowest]
        for clipping in _COLORS:
            rows = found[normalization, clipping]
            tuned = [row for row in rows if row["threshold"] == best_run(rows)["threshold"]]
            line.append(None if lowest is None else largest_stable_rate(tuned, lowest + tolerance))
        lines.append(line)
    return results.table(
        f"Largest learning rate of the grid with a held-out loss within {tolerance:g} nats a byte "
        "of the lowest of the same network with any clipping; one seed, tuned threshold.",
        ("in place of normalization", "lowest held-out loss", *_COLORS),
        lines,
    )


def speed_table(final: Sequence[grid.Row]) -> str:
    """Returns the median steps a second of each arm, in Markdown."""
    found = arms(final)
    return results.table(
        "Training steps a second, median over the tuned runs, in which arms take turns.",
        ("in place of normalization", *_COLORS),
        [
            (
                _NAMES[normalization],
                *(
                    float(
                        np.median([row["steps_per_second"] for row in found[normalization, each]])
                    )
                    for each in _COLORS
                ),
            )
            for normalization in dict.fromkeys(name for name, _ in found)
        ],
    )


def _draw_final(final: Sequence[grid.Row]) -> Figure:
    """Draws each arm's test loss: every seed, and the mean with its 95% interval."""
    found = arms(final)
    normalizations = list(dict.fromkeys(name for name, _ in found))
    figure = Figure(figsize=(8, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for index, (clipping, color) in enumerate(_COLORS.items()):
        offset = 0.18 * (index - 1.5)
        for place, normalization in enumerate(normalizations):
            losses = np.array([r["loss"] for r in found[normalization, clipping]], float)
            axes.plot([place + offset] * len(losses), losses, ".", color=color, alpha=0.4)
            if len(losses) > 1:
                half = stats.t.ppf(0.975, len(losses) - 1) * stats.sem(losses)
                axes.errorbar(place + offset, losses.mean(), half, fmt="_", color=color, capsize=3)
        axes.plot([], [], "s", color=color, label=clipping)
    axes.set_xticks(range(len(normalizations)), [_NAMES[name] for name in normalizations])
    axes.set(ylabel="test loss (nats a byte)", xlabel="in place of normalization")
    axes.set_title("Tuned runs: seeds, means and their 95% intervals")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(title="clipping", ncols=2)
    return figure


def _draw_rates(tuning: Sequence[grid.Row]) -> Figure:
    """Draws the held-out loss by learning rate at the tuned thresholds, a panel a network."""
    found = arms(tuning)
    normalizations = list(dict.fromkeys(name for name, _ in found))
    figure = Figure(figsize=(3.1 * len(normalizations), 3.8), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(normalizations), sharey=True, squeeze=False)[0]
    lowest = min((row["loss"] for row in tuning if row["loss"] is not None), default=0)
    for panel, normalization in zip(panels, normalizations, strict=True):
        for clipping, color in _COLORS.items():
            rows = found[normalization, clipping]
            tuned = [row for row in rows if row["threshold"] == best_run(rows)["threshold"]]
            losses = np.array([row["loss"] for row in tuned], float)
            rates = [row["learning_rate"] for row in tuned]
            panel.plot(rates, losses, "o-", ms=4, color=color, label=clipping)
        panel.set(xscale="log", xlabel="learning rate", title=_NAMES[normalization])
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xticks(rates, minor=False)
        panel.set_xticks([], minor=True)
        panel.tick_params(axis="x", rotation=45)
        panel.grid(alpha=0.3)
    # The axis ends above chance, or runs that diverge would hide the rest.
    panels[0].set(ylim=(lowest - 0.1, lowest + 1.5), ylabel="held-out loss (nats a byte)")
    panels[0].legend(title="clipping")
    return figure


if __name__ == "__main__":
    command.run("lm", __doc__, study, budgets=tuple(lm.BUDGETS))
