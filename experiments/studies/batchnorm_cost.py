"""Measures the cost of batch normalization and the coupling of images that it causes.

NFNets (Brock et al. 2021b, arXiv:2102.06171, section 1) claim that batch normalization is expensive
in time and memory and breaks the independence of a batch's examples.

    python -m experiments.studies.batchnorm_cost --budget=cpu

Design: each batch-normalized network is compared first with the normalizer-free network of its
shape, then with itself reduced to the scale and offset of its normalization. In every round each
form takes one training step, in an order that rotates; a ratio is the median over the rounds, with
a bootstrap's 95% interval. On a CPU the process keeps to two cores. Memory is as the compiler plans
it; budget ``h100`` plans for an H100 instead of measuring, and needs its compiler but no GPU
(``make plan-test`` installs it). To measure the coupling, all images of a batch but the first are
replaced, and the change of the first one's logits is set over their standard deviation: 0 if images
are independent.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy import stats

import nfnets_jax
from nfnets_jax.devices import transfer
from nfnets_jax.errors import InputError
from nfnets_jax.models.batch_norm import BatchNorm
from nfnets_jax.training import recipes
from nfnets_jax.training.experiment import build_experiment
from nfnets_jax.training.memory import compile_update, planned_bytes

from .. import plan
from ..targets import open_target
from . import command, grid, results


class Budget(NamedTuple):
    """The size of the study.

    Attributes:
      networks: batch-normalized networks and their normalizer-free relatives, "" for none.
      batch: images per step.
      size: side of the images in pixels.
      rounds: timed steps of each form; 0 plans the memory alone.
      precision: of the computation.
      cores: that the process keeps to; 0 for all.
      target: a device to plan for, as ``experiments.plan`` takes it; "" for the one that is there.
    """

    networks: Mapping[str, str]
    batch: int
    size: int
    rounds: int
    precision: str
    cores: int = 0
    target: str = ""


_NETWORKS = {"resnet50": "nf_resnet50", "nfnet_f0_bn": "nfnet_f0", "efficientnet_b0": ""}
BUDGETS = {
    "smoke": Budget({"resnet26_small": "skipinit_resnet26_small"}, 4, 16, 2, "float32", cores=2),
    "cpu": Budget(_NETWORKS, 8, 128, 100, "float32", cores=2),
    "gpu": Budget(_NETWORKS, 128, 224, 100, "bfloat16"),
    "h100": Budget(_NETWORKS, 256, 224, 0, "bfloat16", target="h100"),
}
NORMALIZED, REDUCED, FREE = "normalized", "scale and offset alone", "normalizer-free"
_FORMS = (NORMALIZED, FREE, REDUCED)


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Measures or plans all networks; needs no data."""
    del data_dir
    design = BUDGETS[budget]
    if design.cores:
        keep_to_cores(design.cores)
    conditions = {"budget": budget, **design._asdict()}
    del conditions["networks"]
    rows = grid.run_grid(
        workdir,
        conditions,
        [{"network": network} for network in design.networks],
        lambda settings: (measure if design.rounds else planned)(settings["network"], design),
    )
    if not design.rounds:
        return results.Results(conditions, rows, [_memory_table(rows)], {})
    tables = [_ratio_table(rows), _form_table(rows), _memory_table(rows)]
    return results.Results(conditions, rows, tables, {"batchnorm_cost": _draw(rows)})


def keep_to_cores(count: int) -> None:
    """Keeps this process and the threads that it will start to its first cores, on Linux.

    Raises:
      InputError: it may use fewer cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise InputError(f"this budget takes {count} cores; this process may use {len(cores)}")
    os.sched_setaffinity(0, cores[:count])


def forms(network: str, design: Budget) -> dict[str, str]:
    """Returns the registered network of each form of a network."""
    names = {NORMALIZED: network, FREE: design.networks[network], REDUCED: network}
    return {form: name for form, name in names.items() if name}


def planned(network: str, design: Budget) -> dict[str, float]:
    """Returns ``FORM bytes``, the memory that the compiler plans for each form of a network."""
    figures = {}
    for form, name in forms(network, design).items():
        with _in_form(form):
            found, _ = plan.plan(_config(name, design), open_target(design.target), 1000)
        figures[f"{form} bytes"] = found["argument_bytes"] + found["temporary_bytes"]
        print(f"{form} {name}: {figures[f'{form} bytes'] / 1e9:.2f} GB", flush=True)
    return figures


def measure(network: str, design: Budget) -> dict[str, Any]:
    """Measures a network in all its forms.

    Returns:
      For each form, ``FORM seconds``, of every timed step; ``FORM bytes``, planned by the compiler;
      ``FORM coupling``, from ``coupling``.
    """
    figures: dict[str, Any] = {}
    steps: dict[str, Callable[[], float]] = {}
    for form, name in forms(network, design).items():
        print(f"compiling {name}, {form}", flush=True)
        with _in_form(form):
            steps[form], figures[f"{form} bytes"] = _training_step(name, design)
            if jax.default_backend() == "cpu":  # The coupling is the same on every device.
                figures[f"{form} coupling"] = coupling(name, min(design.size, 64))
    for step in steps.values():
        step()  # The first step is slower.
    seconds: dict[str, list[float]] = {form: [] for form in steps}
    order = list(steps)
    for done in range(1, design.rounds + 1):
        for form in order:
            seconds[form].append(steps[form]())
        order.append(order.pop(0))
        if done % 20 == 0:
            print(f"{network}: {done} of {design.rounds} rounds", flush=True)
    return {**figures, **{f"{form} seconds": each for form, each in seconds.items()}}


class Ratio(NamedTuple):
    """A median ratio of step times over the rounds, with its 95% interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(row: grid.Row, form: str, reference: str) -> Ratio:
    """Returns the ratio of two forms' step times, round by round."""
    ratios = np.divide(row[f"{form} seconds"], row[f"{reference} seconds"])
    found = stats.bootstrap((ratios,), np.median, method="percentile", rng=0)
    low, high = found.confidence_interval
    return Ratio(float(np.median(ratios)), float(low), float(high))


def _in_form(form: str) -> contextlib.AbstractContextManager[None]:
    return _without_statistics() if form == REDUCED else contextlib.nullcontext()


@contextlib.contextmanager
def _without_statistics() -> Iterator[None]:
    """Reduces batch normalization, in networks traced inside, to its scale and offset."""

    def scale_and_offset(
        call: Callable[..., Any], args: Any, kwargs: Any, context: hk.MethodContext
    ) -> Any:
        if not isinstance(context.module, BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        (x, *_), channels = args, args[0].shape[-1:]
        scale = hk.get_parameter("scale", channels, init=jnp.ones)
        offset = hk.get_parameter("offset", channels, init=jnp.zeros)
        return x * scale.astype(x.dtype) + offset.astype(x.dtype)

    with hk.intercept_methods(scale_and_offset):
        yield


def _config(name: str, design: Budget) -> ConfigDict:
    config = recipes.small_images(name, "synthetic", design.size)
    config.update({"batch_size": design.batch, "num_devices": 1, "look_every": 0})
    config.update({"micro_batch_size": design.batch, "precision": design.precision})
    return config


def _training_step(name: str, design: Budget) -> tuple[Callable[[], float], float]:
    """Returns a function that runs a training step and returns its seconds, and planned bytes."""
    experiment = build_experiment(_config(name, design))
    # Black images: without normalization others might overflow, and time depends on shapes alone.
    images = np.zeros((design.batch, design.size, design.size, 3), np.uint8)
    batch = transfer(
        {"image": images, "label": np.zeros(design.batch, np.int32)}, experiment.devices
    )
    state = experiment.to_devices(experiment.create_state())
    update: Any = compile_update(experiment, state, batch, print)

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = update(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return step, planned_bytes(update)


def coupling(name: str, size: int) -> float:
    """Returns how much an image's training logits change with the other images of its batch.

    The largest change is set over the standard deviation of the logits.
    """
    settings = nfnets_jax.create_model(name).config
    rates = ("dropout_rate", "stochastic_depth_rate")
    deterministic: dict[str, Any] = {rate: 0.0 for rate in rates if hasattr(settings, rate)}
    model = nfnets_jax.create_model(name, **deterministic)
    images = jax.random.normal(jax.random.key(0), (8, size, size, 3))
    others = images.at[1:].set(2 * jnp.flip(images[1:], axis=1))

    @jax.jit
    def logits(params: Any, state: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, state, jax.random.key(1), images, True)[0]["logits"][0]

    params, state = jax.jit(model.init)(jax.random.key(2), images)
    before, after = (logits(params, state, batch) for batch in (images, others))
    return float(jnp.max(jnp.abs(after - before)) / jnp.std(before))


def _ratio_table(rows: Sequence[grid.Row]) -> str:
    lines = []
    for row in rows:
        free = ratio(row, FREE, NORMALIZED) if f"{FREE} seconds" in row else None
        lines.append((row["network"], free, ratio(row, REDUCED, NORMALIZED)))
    return results.table(
        "Time of a step over that of the batch-normalized network: median over the rounds, and its "
        "95% interval. One minus the second is the share of normalization.",
        ("batch-normalized network", FREE, REDUCED),
        lines,
    )


def _form_table(rows: Sequence[grid.Row]) -> str:
    return results.table(
        "A training step: median seconds. Coupling: the largest change of an image's logits with "
        "the other images, over the standard deviation; a dash where it was not measured.",
        ("network", "form", "seconds", "coupling"),
        [
            (
                row["network"],
                form,
                statistics.median(row[f"{form} seconds"]),
                row.get(f"{form} coupling"),
            )
            for row in rows
            for form in _FORMS
            if f"{form} seconds" in row
        ],
    )


def _memory_table(rows: Sequence[grid.Row]) -> str:
    def gigabytes(row: grid.Row, form: str) -> float | None:
        planned = row.get(f"{form} bytes")
        return None if planned is None else planned / 1e9

    return results.table(
        "Memory of a training step, gigabytes planned by the compiler.",
        ("batch-normalized network", *_FORMS),
        [(row["network"], *(gigabytes(row, form) for form in _FORMS)) for row in rows],
    )


def _draw(rows: Sequence[grid.Row]) -> Figure:
    """Draws the step time of each form over that of the batch-normalized network."""
    figure = Figure(figsize=(6.5, 3.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for offset, form in ((-0.1, FREE), (0.1, REDUCED)):
        measured = [(place, row) for place, row in enumerate(rows) if f"{form} seconds" in row]
        ratios = [ratio(row, form, NORMALIZED) for _, row in measured]
        axes.errorbar(
            [place + offset for place, _ in measured],
            [each.median for each in ratios],
            [
                [each.median - each.low for each in ratios],
                [each.high - each.median for each in ratios],
            ],
            fmt="o",
            capsize=4,
            label=form,
        )
    axes.axhline(1, color="k", linestyle=":", label=NORMALIZED)
    axes.set_xticks(range(len(rows)), [row["network"] for row in rows])
    axes.set(
        ylabel="step time over batch-normalized",
        title="Median over the rounds and its 95% interval",
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    command.run("batchnorm_cost", __doc__, study, budgets=tuple(BUDGETS))
