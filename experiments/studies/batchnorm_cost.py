"""What batch normalization costs a training step, and what it does to the examples of a batch.

    python -m experiments.studies.batchnorm_cost --budget=cpu

compares networks with the same ones whose normalization is left out, but for its scale and offset,
and where there is one, with the normalizer-free network of the same blocks: seconds of a training
step, all in turn in one process, and bytes by the compiler's plan. It then changes all images of a
batch but one, and tells how much the logits of that one changed.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import nfnets_jax
from experiments import recipes
from experiments.studies import grid
from nfnets_jax.atomic import replaced
from nfnets_jax.devices import transfer
from nfnets_jax.errors import InputError
from nfnets_jax.models.batch_norm import BatchNorm
from nfnets_jax.training.experiment import build_experiment
from nfnets_jax.training.memory import compile_update, planned_bytes


class Budget(NamedTuple):
    """How large the study is: ``networks`` with their normalizer-free relatives, if any."""

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
# The forms of a network that are compared, as the rows of the results call them.
_FORMS = ("normalized", "left out", "normalizer-free")


def main() -> None:
    """Runs the study."""
    arguments = grid.parse(__doc__.splitlines()[0], "batchnorm_cost")
    budget = BUDGETS[arguments.budget]
    common = {
        "budget": arguments.budget,
        "batch": budget.batch,
        "size": budget.size,
        "steps": budget.steps,
        "precision": budget.precision,
    }
    try:
        rows = grid.run_grid(
            arguments.workdir,
            common,
            [{"network": network} for network in budget.networks],
            lambda settings: measure(settings["network"], budget),
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    with replaced(arguments.workdir / "batchnorm_cost.png") as partial:
        _draw(rows).savefig(partial, dpi=110, format="png")
    title = "What batch normalization costs"
    grid.write_report(arguments.workdir, title, rows, _verdict(rows), common)


def measure(network: str, budget: Budget) -> dict[str, float]:
    """The figures of one network.

    Returns, of each form in ``normalized``, ``left out`` and, where there is one,
    ``normalizer-free``: ``FORM seconds`` of a step, ``FORM bytes`` by the compiler's plan, and
    ``FORM change``, by how much the logits of an image changed with the others of its batch, over
    their standard deviation. And ``share``, the median over the steps of what the normalization
    took of each, with its quartiles ``share_low`` and ``share_high``.
    """
    figures: dict[str, float] = {}
    steps: dict[str, Callable[[], float]] = {}
    for form in _FORMS:
        name = budget.networks[network] if form == "normalizer-free" else network
        if name:
            with _left_out() if form == "left out" else contextlib.nullcontext():
                steps[form], figures[f"{form} bytes"] = _step(name, budget)
                figures[f"{form} change"] = _change(name, budget)
    taken: dict[str, list[float]] = {form: [] for form in steps}
    for turn in range(budget.steps + 1):
        for form, step in steps.items():
            seconds = step()
            if turn:  # The first of each takes longer.
                taken[form].append(seconds)
    for form, each in taken.items():
        figures[f"{form} seconds"] = statistics.median(each)
    shares = 1 - np.divide(taken["left out"], taken["normalized"])
    low, share, high = np.quantile(shares, [0.25, 0.5, 0.75])
    return {**figures, "share": float(share), "share_low": float(low), "share_high": float(high)}


@contextlib.contextmanager
def _left_out() -> Any:
    """What is traced inside has the scale and the offset of batch normalization, and no more."""

    def scale_alone(
        call: Callable[..., Any], args: Any, kwargs: Any, context: hk.MethodContext
    ) -> Any:
        if not isinstance(context.module, BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        (x, *_), channels = args, args[0].shape[-1:]
        scale = hk.get_parameter("scale", channels, init=jnp.ones)
        offset = hk.get_parameter("offset", channels, init=jnp.zeros)
        return x * scale.astype(x.dtype) + offset.astype(x.dtype)

    with hk.intercept_methods(scale_alone):
        yield


def _step(name: str, budget: Budget) -> tuple[Callable[[], float], float]:
    """A function that takes a training step and gives its seconds; and the bytes of its plan."""
    config = recipes.small_images(name, "synthetic", budget.size)
    config.update({"batch_size": budget.batch, "num_devices": 1, "look_every": 0})
    config.update({"micro_batch_size": budget.batch, "precision": budget.precision})
    plan = build_experiment(config)
    # Shapes are what counts; without normalization the values would soon be none.
    images = np.zeros((budget.batch, budget.size, budget.size, 3), np.uint8)
    batch = transfer({"image": images, "label": np.zeros(budget.batch, np.int32)}, plan.devices)
    state = plan.to_devices(plan.create_state())
    update: Any = compile_update(plan, state, batch, print)

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = update(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return step, planned_bytes(update)


def _change(name: str, budget: Budget) -> float:
    """Of an image's logits in training, when its batch-mates are others; over their deviation."""
    model = nfnets_jax.create_model(name, **_undisturbed(name))
    images = jax.random.normal(jax.random.key(0), (8, budget.size, budget.size, 3))
    others = images.at[1:].set(2 * jnp.flip(images[1:], axis=1))

    @jax.jit
    def logits(params: Any, state: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, state, jax.random.key(1), images, True)[0]["logits"][0]

    params, state = jax.jit(model.init)(jax.random.key(2), images)
    before, after = (logits(params, state, batch) for batch in (images, others))
    return float(jnp.max(jnp.abs(after - before)) / jnp.std(before))


def _undisturbed(name: str) -> dict[str, Any]:
    """Settings of a model that leave nothing to chance."""
    config = nfnets_jax.create_model(name).config
    rates = ("dropout_rate", "stochastic_depth_rate")
    return {rate: 0.0 for rate in rates if hasattr(config, rate)}


def _verdict(rows: list[grid.Row]) -> str:
    header = ("network", "form", "step (s)", "bytes (GB)", "change by batch-mates")
    table = [
        (
            row["network"],
            form,
            row[f"{form} seconds"],
            row[f"{form} bytes"] / 1e9,
            row[f"{form} change"],
        )
        for row in rows
        for form in _FORMS
        if f"{form} change" in row
    ]
    shares = "; ".join(
        f"{row['network']} {row['share']:.0%} ({row['share_low']:.0%} to {row['share_high']:.0%})"
        for row in rows
    )
    return "\n\n".join(
        [
            f"Batch normalization's share of a training step (median and quartiles): {shares}. The "
            "claim is 24% of ResNet-50's on one GPU.",
            "The change is the largest of an image's logits when all others of its batch change, "
            "over the logits' standard deviation; 0 is what independent examples give. A form that "
            "is left out keeps the normalization's scale and offset.",
            grid.markdown_table(header, table),
            "![Seconds of a training step](batchnorm_cost.png)",
        ]
    )


def _draw(rows: list[grid.Row]) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for index, form in enumerate(_FORMS):
        places = [place for place, row in enumerate(rows) if f"{form} seconds" in row]
        heights = [rows[place][f"{form} seconds"] for place in places]
        axes.bar(np.array(places) + 0.27 * (index - 1), heights, 0.25, label=form)
    axes.set_xticks(range(len(rows)), [row["network"] for row in rows])
    axes.set(ylabel="seconds of a training step")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
