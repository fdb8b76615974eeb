"""A training run from its configuration to its summary: the one place that knows the order."""

import contextlib
import dataclasses
import functools
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
import optax

from nfnets_jax.data import pipeline
from nfnets_jax.data.sources import Dataset, open_dataset
from nfnets_jax.data.transforms import EvalTransform, TrainTransform
from nfnets_jax.errors import InputError
from nfnets_jax.models.registry import Model, create_model
from nfnets_jax.training import reporting
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.optimizers import create_optimizer, learning_rate
from nfnets_jax.training.step import (
    Metrics,
    TrainState,
    create_state,
    fetch,
    make_evaluate,
    make_update,
    replicate,
    split,
)

# Fields that a resumed run may change: they do not touch what is learned.
_FREE_FIELDS = frozenset(
    {
        "num_devices",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "data.dir",
        "data.test_dir",
        "data.num_workers",
    }
)
# Steps that may be under way on the devices while the host prepares the next.
_STEPS_AHEAD = 2


class Interrupted(Exception):  # noqa: N818, it is no error
    """SIGINT or SIGTERM came; the run is saved and can go on."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"{signal.Signals(signal_number).name}: saved at step {step}")
        self.signal_number = signal_number


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains by the configuration, or goes on where the run in ``workdir`` stopped.

    Args:
      config: as the files of ``experiments/configs`` make it.
      workdir: gets ``config.json``, ``metrics.jsonl``, ``checkpoints/``, TensorBoard events,
        ``curves.png`` and, in the end, ``summary.json``.

    Returns:
      The summary.

    Raises:
      InputError: the configuration cannot be run, here or in this ``workdir``, which is left as it
        was.
      Interrupted: a signal came; starting again goes on.
      FloatingPointError: the loss is not finite any more.
    """
    run = _prepare(config)
    _check_workdir(config, workdir)

    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{workdir} cannot be made: {error.strerror}; take another") from error
    reporting.write_json(workdir / "config.json", config.to_dict())
    with contextlib.closing(Checkpoints(workdir / "checkpoints", config.keep_checkpoints)) as saved:
        step = saved.latest_step() or 0
        summary = workdir / "summary.json"
        if step == config.num_steps and summary.exists():
            print(f"{workdir} is finished, all {step} steps of it: delete it to train anew")
            return json.loads(summary.read_text(encoding="utf-8"))
        report = reporting.Reporter(workdir, step, config.num_steps, config.batch_size)
        with contextlib.closing(report):
            report.say(run.description)
            state, seconds = _train_steps(run, step, saved, report)
        result = {
            "model": config.model.name,
            "data": config.data.name,
            "steps": int(state.step),
            "seconds": round(seconds, 1),
            "train": report.last("train"),
            "test": report.last("test"),
            "params_sha256": reporting.params_sha256(state.params),
            **reporting.environment(run.devices),
        }
    reporting.write_json(summary, result)
    return result


@dataclasses.dataclass(frozen=True)
class _Run:
    """A configuration made real, checked, nothing yet computed or written."""

    config: ml_collections.ConfigDict
    devices: list[jax.Device]
    dataset: Dataset
    model: Model
    optimizer: optax.GradientTransformation
    train_batches: grain.MapDataset
    test_batches: grain.MapDataset | None

    @property
    def description(self) -> str:
        test = (
            f"tested on {len(self.dataset.test)}"
            if self.dataset.test
            else "not tested: no test images"
        )
        return (
            f"{self.config.model.name} on {len(self.dataset.train)} images of "
            f"{len(self.dataset.class_names)} classes ({self.config.data.name}), {test}; "
            f"{len(self.devices)} x {self.devices[0].device_kind}, batch {self.config.batch_size}"
        )

    def create_state(self) -> TrainState:
        data = self.config.data
        shape = (1, data.image_size, data.image_size, self.dataset.channels)
        return create_state(self.model, self.optimizer, shape, self.config.seed)


def _prepare(config: ml_collections.ConfigDict) -> _Run:
    for field in ("batch_size", "num_steps", "log_every", "keep_checkpoints"):
        if config[field] < 1:
            raise InputError(f"{field} is {config[field]}; it takes a number from 1 on")
    devices = _devices(config)
    build = functools.partial(create_model, **config.model, precision=config.precision)
    build()  # A wrong name should show before data are looked for.
    data = config.data
    dataset = open_dataset(data.name, data.dir, data.test_dir, data.image_size)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for source in filter(None, (dataset.train, dataset.test)):
        pipeline.check_readable(source)
    augment = TrainTransform(data.image_size, data.crop, data.padding, data.flip)
    center = EvalTransform(data.test_image_size, data.test_margin)
    return _Run(
        config=config,
        devices=devices,
        dataset=dataset,
        model=build(num_classes=len(dataset.class_names)),
        optimizer=create_optimizer(config),
        train_batches=pipeline.train_batches(
            dataset.train, augment, config.batch_size, config.seed, **processes
        ),
        test_batches=pipeline.eval_batches(dataset.test, center, config.batch_size, **processes)
        if dataset.test
        else None,
    )


def _devices(config: ml_collections.ConfigDict) -> list[jax.Device]:
    available, wanted = jax.local_devices(), config.num_devices
    if not 0 <= wanted <= len(available):
        raise InputError(
            f"num_devices is {wanted}, and there are {len(available)} ({available[0].platform}); "
            "0 takes all"
        )
    devices = available[:wanted] if wanted else available
    count = len(devices) * jax.process_count()
    if config.batch_size % count:
        nearest = max(1, round(config.batch_size / count)) * count
        raise InputError(
            f"batch_size {config.batch_size} does not divide evenly over {count} devices; the "
            f"nearest that does is {nearest}"
        )
    return devices


def _check_workdir(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuses a place that holds something other than this run."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; --workdir takes a folder")
    stored = workdir / "config.json"
    if not stored.exists():
        if (workdir / "checkpoints").exists():
            raise InputError(
                f"{workdir} has checkpoints but no config.json: take another --workdir"
            )
        return
    before = _flatten(json.loads(stored.read_text(encoding="utf-8")))
    now = _flatten(json.loads(config.to_json()))
    differences = [
        f"{field} {before.get(field)!r} there, {now.get(field)!r} here"
        for field in sorted(before.keys() | now.keys())
        if field not in _FREE_FIELDS and before.get(field) != now.get(field)
    ]
    if differences:
        raise InputError(
            f"{workdir} holds a run of another configuration ({'; '.join(differences)}): take "
            "another --workdir"
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _train_steps(
    run: _Run, done: int, saved: Checkpoints, report: reporting.Reporter
) -> tuple[TrainState, float]:
    """Takes the steps after the first ``done``.

    Returns:
      The final state, on the host, and the seconds that the run took, earlier starts included.
    """
    config, start = run.config, time.monotonic()
    batches = pipeline.read_ahead(run.train_batches, config.data.num_workers)
    if done:
        host_state, position = saved.restore(done, jax.eval_shape(run.create_state))
        batches.set_state(position["data"])
        start -= position["seconds"]
        report.say(f"resumed at step {done}")
    else:
        host_state = run.create_state()
    state = replicate(host_state, run.devices)
    update = make_update(
        run.model,
        run.optimizer,
        run.dataset,
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        devices=run.devices,
    )
    evaluate = make_evaluate(run.model, run.dataset, devices=run.devices)
    schedule = learning_rate(config)

    pending: list[Metrics] = []
    with contextlib.closing(batches), _signals() as received:
        for step in range(done + 1, config.num_steps + 1):
            state, metrics = update(state, split(next(batches), len(run.devices)))
            pending.append(metrics)
            if step == done + 1:
                jax.block_until_ready(metrics)
                report.compiled(step)
            jax.block_until_ready(pending[max(0, len(pending) - 1 - _STEPS_AHEAD)])

            last, stop = step == config.num_steps, bool(received)
            save = last or stop or _due(step, config.checkpoint_every)
            if save or _due(step, config.log_every):
                figures = _mean(pending) | {"learning_rate": float(schedule(step - 1))}
                pending = []
                report.train(step, figures)
                if not math.isfinite(figures["loss"]):
                    raise FloatingPointError(
                        f"the loss is {figures['loss']} at step {step}: lower "
                        "optimizer.base_learning_rate or optimizer.clipping"
                    )
            with report.pause():
                if run.test_batches is not None and (last or _due(step, config.eval_every)):
                    report.test(step, _evaluate(run, evaluate, state))
                if save:
                    host_state = fetch(state)
                    seconds = time.monotonic() - start
                    saved.save(step, host_state, {"data": batches.get_state(), "seconds": seconds})
            if stop:
                raise Interrupted(received[0], step)
    return host_state, time.monotonic() - start


def _due(step: int, every: int) -> bool:
    """Whether something is due that comes ``every`` so many steps, 0 for never."""
    return every > 0 and step % every == 0


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one kills as ever."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handle) for number in numbers}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        yield received
    finally:
        restore()


def _mean(pending: list[Metrics]) -> dict[str, float]:
    """Means over the steps, of metrics that are equal on all devices."""
    steps = [fetch(metrics) for metrics in pending]
    return {name: float(np.mean([metrics[name] for metrics in steps])) for name in steps[0]}


def _evaluate(run: _Run, evaluate: Any, state: TrainState) -> dict[str, float]:
    """Metrics over all test images, of the parameters and of their moving average."""
    assert run.test_batches is not None
    candidates = {"": state.params, "ema_": state.ema_params}
    totals: dict[str, float] = {}
    with contextlib.closing(
        pipeline.read_ahead(run.test_batches, run.config.data.num_workers)
    ) as batches:
        for batch in batches:
            parts = split(batch, len(run.devices))
            for prefix, params in candidates.items():
                sums = fetch(evaluate(params, state.model_state, parts))
                for name, value in sums.items():
                    totals[prefix + name] = totals.get(prefix + name, 0.0) + float(value)
    examples = totals.pop("examples")
    del totals["ema_examples"]
    return {name: total / examples for name, total in totals.items()} | {"examples": examples}
