"""Tests the claim that normalizer-free backbones suit detectors, which learn from small batches.

Batch normalization takes its statistics from a batch, and a detector's has few images. The claim,
that NFNets would therefore become backbones of detectors, was made when they were presented; no
publication is known that measured it.

    python -m experiments.studies.detection --budget=cpu --data_dir=TFDS_DIR

Design, on scenes of digits, where each run sees equally many images:

- batch: at several batch sizes, a small NF-ResNet, a ResNet of the same shape whose batches are
  normalized by their own statistics, and this ResNet with the statistics of its pretraining;
- start: the NF-ResNet from pretraining and from scratch, with few and with many scenes;
- clipping: with AGC on all layers, on the backbone alone, and on none.

Pretraining is a classifier's, on CIFAR-10, or without ``--data_dir`` on synthetic patterns. Every
point has a learning rate of its own, tuned by one run per rate on scenes that these runs do not
learn from; the best rate is then trained with each seed and tested once.
"""

import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from nfnets_jax.training import loop, recipes
from nfnets_jax.training.divergence import Diverged

from .. import configs
from ..projects import import_projects
from . import command, grid, results


class Budget(NamedTuple):
    """The size of the study.

    Attributes:
      images: images that each run learns from, epochs together.
      batch_sizes: images a step.
      scenes: training scenes, few and many; the comparison of batches takes many.
      rates: learning rates for a batch of 256; a single one is used as it is.
      seeds: runs with the best rate.
      image_size: side of the scenes, pixels.
      pretraining_steps: of the classifiers, with batches of 128.
      shapes: settings of each network that replace its own.
    """

    images: int
    batch_sizes: tuple[int, ...]
    scenes: tuple[int, int]
    rates: tuple[float, ...]
    seeds: int
    image_size: int
    pretraining_steps: int
    shapes: Mapping[str, Mapping[str, Any]]


NF, BN = "nf_resnet26_small", "resnet26_small"
_TINY: Mapping[str, Mapping[str, Any]] = {
    NF: {"width": (8, 16), "depth": (1, 1), "strides": (1, 2), "stem": ((8, 1),)},
    BN: {"width": (8, 16), "depth": (1, 1), "group_width": 4},
}
_WHOLE: Mapping[str, Mapping[str, Any]] = {NF: {}, BN: {}}
BUDGETS = {
    "smoke": Budget(16, (4,), (8, 16), (1.6,), 1, 16, 2, _TINY),
    "cpu": Budget(20_000, (2, 4, 16), (500, 5000), (0.8, 1.6, 3.2, 6.4), 3, 48, 3000, _WHOLE),
    "gpu": Budget(
        100_000, (2, 4, 16), (500, 5000), (0.4, 0.8, 1.6, 3.2, 6.4, 12.8), 5, 64, 12_000, _WHOLE
    ),
}
_CLIPPING = 0.04
_PRETRAINING_BATCH = 128
# Share of the training scenes on which rates are tuned.
_HELD_OUT = 0.1


class Way(NamedTuple):
    """A way to train a detector.

    Attributes:
      network: the backbone.
      color: of its line in pictures.
      clipping: threshold of AGC; 0 for none.
      optimizer: value of ``optimizer.name``.
      pretrained: whether the backbone was trained to classify.
      frozen: whether batch normalization keeps the statistics of pretraining.
    """

    network: str
    color: str
    clipping: float = 0.0
    optimizer: str = "sgd"
    pretrained: bool = True
    frozen: bool = False


_NF_AGC = "NF-ResNet, AGC"
WAYS: Mapping[str, Way] = {
    _NF_AGC: Way(NF, "C1", _CLIPPING),
    "ResNet, live statistics": Way(BN, "C7"),
    "ResNet, frozen statistics": Way(BN, "C2", frozen=True),
    "NF-ResNet, AGC, from scratch": Way(NF, "C1", _CLIPPING, pretrained=False),
    "NF-ResNet, AGC on the backbone": Way(NF, "C3", _CLIPPING, "sgd_with_free_head"),
    "NF-ResNet, no AGC": Way(NF, "C0"),
}
_BATCH_WAYS = list(WAYS)[:3]
_START_WAYS = [_NF_AGC, "NF-ResNet, AGC, from scratch"]
_CLIPPING_WAYS = [_NF_AGC, *list(WAYS)[4:]]


def points(budget: Budget) -> list[grid.Settings]:
    """Returns what is compared: a way, a batch size and a number of scenes, each once."""
    few, many = budget.scenes
    largest = budget.batch_sizes[-1]
    wanted = [
        *((way, batch, many) for way in _BATCH_WAYS for batch in budget.batch_sizes),
        *((way, largest, scenes) for way in _START_WAYS for scenes in (few, many)),
        *((way, largest, many) for way in _CLIPPING_WAYS),
    ]
    return [
        {"way": way, "batch_size": batch, "scenes": scenes}
        for way, batch, scenes in dict.fromkeys(wanted)
    ]


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Pretrains both networks, tunes each point and trains it with each seed."""
    design = BUDGETS[budget]
    conditions = {
        "budget": budget,
        "pretraining": "tfds:cifar10" if data_dir else "synthetic",
        **{name: value for name, value in design._asdict().items() if name != "shapes"},
    }
    conditions = json.loads(json.dumps(conditions))  # Tuples as they are read again.

    @functools.cache
    def pretrained(network: str) -> Path:
        folder = workdir / "pretrained" / network
        loop.train(_pretraining(design, network, data_dir), folder)
        return folder

    def run(settings: grid.Settings) -> dict[str, float]:
        way = WAYS[settings["way"]]
        config = _config(design, settings)
        config.init.weights = str(pretrained(way.network)) if way.pretrained else ""
        try:
            summary = loop.train(config, workdir / "training" / grid.file_name(settings))
        except Diverged as diverged:
            print(diverged, flush=True)
            return {"AP": 0.0, "AP50": 0.0}
        finally:
            jax.clear_caches()  # The compiled programs of dozens of runs would fill the memory.
        return {name: summary["test"][name] for name in ("AP", "AP50")}

    import_projects(configs.get_config("detect_digits").imports)
    compared = points(design)
    first, *others = design.rates
    tuning = grid.run_grid(
        workdir,
        conditions,
        [
            {**point, "rate": rate, "tuned_on": round(_HELD_OUT * point["scenes"]), "seed": 0}
            for point in compared
            for rate in design.rates
            if others
        ],
        run,
    )
    final = grid.run_grid(
        workdir,
        conditions,
        [
            {
                **point,
                "rate": best_rate(tuning, point) if others else first,
                "tuned_on": 0,
                "seed": seed,
            }
            for point in compared
            for seed in range(design.seeds)
        ],
        run,
    )
    return results.Results(
        conditions,
        [*tuning, *final],
        [_table(final, design)],
        {"batch_size": _draw(final, design)},
    )


def best_rate(tuning: Sequence[grid.Row], point: grid.Settings) -> float:
    """Returns the rate with the highest AP on the held-out scenes; of equal ones the lowest."""
    runs = [row for row in tuning if point.items() <= row.items()]
    return max(runs, key=lambda row: (row["AP"], -row["rate"]))["rate"]


def interval(values: Sequence[float]) -> float | None:
    """Returns half the 95% confidence interval of the mean, by Student's t; None for one value."""
    from scipy.stats import t  # scikit-learn brings it.

    if len(values) < 2:
        return None
    count = len(values)
    return float(t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5)


def _pretraining(design: Budget, network: str, data_dir: Path | None) -> ConfigDict:
    """Returns the training of a classifier, whose backbone a detector starts from."""
    data = "tfds:cifar10" if data_dir else "synthetic"
    config = recipes.small_images(network, data, 32)
    with config.unlocked():
        config.model.update(design.shapes[network])
        if network == BN:
            del config.model["remat"]
    config.data.dir = str(data_dir or "")
    config.data.update({"padding": 4, "flip": True})
    config.update({"batch_size": _PRETRAINING_BATCH, "num_steps": design.pretraining_steps})
    config.update({"num_devices": 1, "ema_decay": 0.0, "look_every": 0})
    clipping = _CLIPPING if network == NF else 0.0
    config.optimizer.update({"base_learning_rate": 0.2, "clipping": clipping})
    config.optimizer.weight_decay = 5e-4
    return config


def _config(design: Budget, settings: grid.Settings) -> ConfigDict:
    """Returns the training of a detector."""
    way = WAYS[settings["way"]]
    config = configs.get_config("detect_digits")
    with config.unlocked():
        dropouts = {"dropout_rate": 0.0, "stochastic_depth_rate": 0.0}
        config.model = ConfigDict({"name": way.network, **dropouts, **design.shapes[way.network]})
    config.task.settings.update(
        {"scenes": settings["scenes"], "stride": 2, "frozen_statistics": way.frozen}
    )
    config.data.update({"image_size": design.image_size, "test_image_size": design.image_size})
    config.data.holdout = settings["tuned_on"]
    config.batch_size = settings["batch_size"]
    config.num_steps = config.log_every = max(1, design.images // config.batch_size)
    config.update({"eval_every": 0, "checkpoint_every": 0, "look_every": 0})
    config.update({"num_devices": 1, "ema_decay": 0.0, "seed": settings["seed"]})
    config.optimizer.update(
        {
            "name": way.optimizer,
            "clipping": way.clipping,
            "base_learning_rate": settings["rate"],
        }
    )
    return config


def _aps(final: Sequence[grid.Row], point: grid.Settings) -> list[float]:
    return [100 * row["AP"] for row in final if point.items() <= row.items()]


def _table(final: Sequence[grid.Row], design: Budget) -> str:
    rows = []
    for point in points(design):
        aps = _aps(final, point)
        rate = next(row["rate"] for row in final if point.items() <= row.items())
        is_edge = len(design.rates) > 1 and rate in (design.rates[0], design.rates[-1])
        rows.append(
            (
                *point.values(),
                f"{rate}{', at an edge' if is_edge else ''}",
                statistics.mean(aps),
                interval(aps),
                len(aps),
            )
        )
    return results.table(
        "Test AP in points: mean over the seeds, and half its 95% confidence interval. Learning "
        "rates are for a batch of 256; one at an edge of the grid may not be the best. A run that "
        "diverged counts as 0.",
        ("way", "batch size", "scenes", "learning rate", "AP", "interval", "seeds"),
        rows,
    )


def _draw(final: Sequence[grid.Row], design: Budget) -> Figure:
    """Draws AP by batch size, with intervals."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name in _BATCH_WAYS:
        series = [
            _aps(final, {"way": name, "batch_size": batch, "scenes": design.scenes[1]})
            for batch in design.batch_sizes
        ]
        means = [statistics.mean(aps) for aps in series]
        bars = [interval(aps) or 0.0 for aps in series]
        axes.errorbar(
            design.batch_sizes, means, bars, fmt="o-", capsize=3, color=WAYS[name].color, label=name
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="batch size", ylabel="test AP, points", title="equal images")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    command.run("detection", __doc__, study)
