"""Measures the cost of batch normalization and the coupling of images that it causes.

NFNets (Brock et al. 2021b, arXiv:2102.06171, section 1) claim that batch normalization is expensive
in time and memory and breaks the independence of a batch's examples.

    python -m experiments.studies.batchnorm_cost --budget=cpu

Design: each batch-normalized network is compared with itself reduced to the scale and offset of its
normalization and, where there is one, with the normalizer-free network of the same blocks. Training
steps of all forms alternate in one process; memory is as the compiler plans it. To measure the
coupling, all images of a batch but the first are replaced, and the change of the first one's logits
is set over their standard deviation: 0 if images are independent.
"""

import contextlib
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

import nfnets_jax
from nfnets_jax.devices import transfer
from nfnets_jax.models.batch_norm import BatchNorm
from nfnets_jax.training import recipes
from nfnets_jax.training.experiment import build_experiment
from nfnets_jax.training.memory import compile_update, planned_bytes

from . import command, grid, results


class Budget(NamedTuple):
    """The size of the study.

    Attributes:
      networks: batch-normalized networks and their normalizer-free relatives, "" for none.
      batch: images per step.
      size: side of the images in pixels.
      steps: timed steps of each form.
      precision: of the computation.
    """

    networks: Mapping[str, str]
    batch: int
    size: int
    steps: int
    precision: str


_NETWORKS = {"resnet50": "nf_resnet50", "efficientnet_b0": ""}
BUDGETS = {
    "smoke": Budget({"resnet26_small": "skipinit_resnet26_small"}, 4, 16, 2, "float32"),
    "cpu": Budget(_NETWORKS, 16, 160, 15, "float32"),
    "gpu": Budget(_NETWORKS, 256, 224, 50, "bfloat16"),
}
NORMALIZED, REDUCED, FREE = "normalized", "scale and offset alone", "normalizer-free"
_FORMS = (NORMALIZED, REDUCED, FREE)


def study(workdir: Path, budget: str, data_dir: Path | None) -> results.Results:
    """Measures all networks; needs no data."""
    del data_dir
    design = BUDGETS[budget]
    conditions = {"budget": budget, **design._asdict()}
    del conditions["networks"]
    rows = grid.run_grid(
        workdir,
        conditions,
        [{"network": network} for network in design.networks],
        lambda settings: measure(settings["network"], design),
    )
    tables = [_form_table(rows), _share_table(rows)]
    return results.Results(conditions, rows, tables, {"batchnorm_cost": _draw(rows)})


def measure(network: str, design: Budget) -> dict[str, float]:
    """Measures a network in all its forms.

    Returns:
      For each form, ``FORM seconds``, the median time of a step; ``FORM bytes``, planned by the
      compiler; ``FORM coupling``, from ``coupling``. Also ``share``, the share of normalization in
      a step's time, as the median over the steps, and its quartiles ``share_low`` and
      ``share_high``.
    """
    figures: dict[str, float] = {}
    steps: dict[str, Callable[[], float]] = {}
    for form in _FORMS:
        name = design.networks[network] if form == FREE else network
        if name:
            with _without_statistics() if form == REDUCED else contextlib.nullcontext():
                steps[form], figures[f"{form} bytes"] = _training_step(name, design)
                figures[f"{form} coupling"] = coupling(name, design.size)
    for step in steps.values():
        step()  # The first step is slower.
    seconds: dict[str, list[float]] = {form: [] for form in steps}
    for _ in range(design.steps):
        for form, step in steps.items():
            seconds[form].append(step())
    figures |= {f"{form} seconds": statistics.median(each) for form, each in seconds.items()}
    shares = 1 - np.divide(seconds[REDUCED], seconds[NORMALIZED])
    low, share, high = np.quantile(shares, [0.25, 0.5, 0.75])
    return {**figures, "share": float(share), "share_low": float(low), "share_high": float(high)}


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


def _training_step(name: str, design: Budget) -> tuple[Callable[[], float], float]:
    """Returns a function that runs a training step and returns its seconds, and planned bytes."""
    config = recipes.small_images(name, "synthetic", design.size)
    config.update({"batch_size": design.batch, "num_devices": 1, "look_every": 0})
    config.update({"micro_batch_size": design.batch, "precision": design.precision})
    experiment = build_experiment(config)
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


def _form_table(rows: Sequence[grid.Row]) -> str:
    return results.table(
        "A training step: median seconds, and gigabytes planned by the compiler. Coupling: the "
        "largest change of an image's logits with the other images, over the standard deviation.",
        ("network", "form", "seconds", "gigabytes", "coupling"),
        [
            (
                row["network"],
                form,
                row[f"{form} seconds"],
                row[f"{form} bytes"] / 1e9,
                row[f"{form} coupling"],
            )
            for row in rows
            for form in _FORMS
            if f"{form} seconds" in row
        ],
    )


def _share_table(rows: Sequence[grid.Row]) -> str:
    return results.table(
        "Share of normalization in the time of a step: median and quartiles over the steps.",
        ("network", "median", "lower quartile", "upper quartile"),
        [
            (row["network"], *(f"{row[name]:.0%}" for name in ("share", "share_low", "share_high")))
            for row in rows
        ],
    )


def _draw(rows: Sequence[grid.Row]) -> Figure:
    figure = Figure(figsize=(6, 3.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for index, form in enumerate(_FORMS):
        measured = [(i, row) for i, row in enumerate(rows) if f"{form} seconds" in row]
        places = [i + 0.27 * (index - 1) for i, _ in measured]
        axes.bar(places, [row[f"{form} seconds"] for _, row in measured], 0.25, label=form)
    axes.set_xticks(range(len(rows)), [row["network"] for row in rows])
    axes.set(ylabel="seconds per training step")
    axes.legend()
    return figure


if __name__ == "__main__":
    command.run("batchnorm_cost", __doc__, study)
