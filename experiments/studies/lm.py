"""Tests whether AGC takes the place of normalization in a small GPT.

NFNets (Brock et al. 2021b, arXiv:2102.06171, section 4) train without normalization thanks to AGC.
The prediction under test is that the same holds for transformers.

    python -m experiments.studies.lm --budget=cpu

Design: GPTs with layer normalization, with GPT-2's small embeddings and with embeddings scaled to
variance one, with nothing in its place, as normalizer-free networks, and with DyT and Derf
(``nfnets_jax.models.transformer``) each learn the bytes of Python's standard library by AdamW,
without clipping, with the global norm clipped, with AGC by unit, as NFNets have it, and with AGC by
tensor, as DreamerV3 has it (Hafner et al. 2023, arXiv:2301.04104). For each of these arms one seed
tunes threshold and learning rate together on held-out files; other seeds train with the best and
are tested on files of a third kind. All runs take the same steps.
"""

import functools
import itertools
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy import stats

from ..configs import lm
from . import command, grid, lm_training, results

_COLORS = {"none": "C7", "global norm": "C0", "AGC by unit": "C1", "AGC by tensor": "C3"}
_NAMES = {
    "layer_norm": "LayerNorm",
    "scaled_layer_norm": "LayerNorm, scaled",
    "none": "nothing",
    "nf": "normalizer-free",
    "dyt": "DyT",
    "derf": "Derf",
}


_NORMALIZED = ("layer_norm", "scaled_layer_norm")


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Tunes and trains every arm; needs no data but Python itself."""
    del data_dir
    config = lm.get_config(budget)
    text = lm_training.read_text(config.text_bytes)
    # As the working directory keeps them: tuples are lists in JSON.
    conditions = {"budget": budget, **json.loads(json.dumps(lm.BUDGETS[budget]._asdict()))}
    conditions["text_crc32"] = zlib.crc32(text.train.tobytes())
    # Cached, so that all rates, thresholds and seeds of an arm share a compiled program.
    cached_trainer = functools.cache(functools.partial(lm_training.trainer, config))

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

    def run_all(members: Sequence[grid.Settings]) -> list[grid.Row]:
        return grid.run_grid(workdir, conditions, members, run)

    tuning = tune(config, run_all)
    final = run_all(final_members(config, tuning))
    conditions["parameters"] = {
        name: lm_training.count_parameters(config, name) for name in config.normalizations
    }
    return results.Results(
        conditions,
        [*tuning, *final],
        tables=[
            loss_table(final, tuning),
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


def tune(
    config: ConfigDict, run_all: Callable[[Sequence[grid.Settings]], list[grid.Row]]
) -> list[grid.Row]:
    """Runs the grid of each arm, and further rates while its best is at an edge of them."""
    members = tuning_members(config)
    for _ in config.more_rates:
        tuning = run_all(members)
        added = [
            {**{name: row[name] for name in members[0]}, "learning_rate": rate}
            for rows in arms(tuning).values()
            if len(config.learning_rates) > 1 and (rate := next_rate(rows, config.more_rates))
            for row in {row["threshold"]: row for row in rows}.values()
        ]
        if not added:
            break
        members += added
    return tuning


def next_rate(rows: Sequence[grid.Row], rates: Sequence[float]) -> float | None:
    """Returns the neighbour of an arm's best rate that was not tried; None if both were.

    ``rates`` are all that there are, ascending; the best may also be the first or the last of them.
    """
    place = rates.index(best_run(rows)["learning_rate"])
    tried = {row["learning_rate"] for row in rows}
    return next((rate for rate in rates[max(place - 1, 0) : place + 2] if rate not in tried), None)


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


class Interval(NamedTuple):
    """A mean difference of test losses and its 95% interval, nats a byte.

    All are NaN if a run diverged; the interval is if there is one seed.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return grid.format_cell(None)
        if np.isnan(self.low):
            return f"{self.mean:+.3f}"
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


def loss_table(final: Sequence[grid.Row], tuning: Sequence[grid.Row]) -> str:
    """Returns the test loss of each tuned arm, with two comparisons, in Markdown."""
    found, tuned = arms(final), arms(tuning)
    normalized = [row for row in tuning if row["normalization"] in _NORMALIZED]
    best = best_run(normalized)
    baseline = (best["normalization"], best["clipping"])

    def shown(arm: tuple[str, str], rate: float) -> str:
        rates = [row["learning_rate"] for row in tuned[arm]]
        return f"{rate:g}*" if rate in (min(rates), max(rates)) else f"{rate:g}"

    lines = [
        (
            _NAMES[normalization],
            clipping,
            rows[0]["threshold"] or None,
            shown((normalization, clipping), rows[0]["learning_rate"]),
            float(np.mean([np.nan if row["loss"] is None else row["loss"] for row in rows])),
            *(
                None if rows is reference else difference(rows, reference)
                for reference in (
                    found[normalization, "none"],
                    found[baseline],
                )
            ),
        )
        for (normalization, clipping), rows in found.items()
    ]
    return results.table(
        "Test loss, nats a byte, at the threshold and learning rate with the lowest held-out "
        "loss: mean over the seeds, and mean difference with its 95% interval, seed by seed. An "
        "asterisk marks an edge of the rates that were tried.",
        (
            "in place of normalization",
            "clipping",
            "threshold",
            "learning rate",
            "loss",
            "against no clipping",
            f"against {_NAMES[baseline[0]]}, clipping {baseline[1]}",
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
            tuned.sort(key=lambda row: row["learning_rate"])
            losses = np.array([row["loss"] for row in tuned], float)
            rates = [row["learning_rate"] for row in tuned]
            panel.plot(rates, losses, "o-", ms=4, color=color, label=clipping)
        panel.set(xscale="log", xlabel="learning rate", title=_NAMES[normalization])
        panel.xaxis.set_major_formatter("{x:g}")
        shown = {row["learning_rate"] for row in tuning if row["normalization"] == normalization}
        panel.set_xticks(sorted(shown), minor=False)
        panel.set_xticks([], minor=True)
        panel.tick_params(axis="x", rotation=45)
        panel.grid(alpha=0.3)
    # The axis ends above chance, or runs that diverge would hide the rest.
    panels[0].set(ylim=(lowest - 0.1, lowest + 1.5), ylabel="held-out loss (nats a byte)")
    panels[0].legend(title="clipping")
    return figure


if __name__ == "__main__":
    command.run("lm", __doc__, study, budgets=tuple(lm.BUDGETS))
