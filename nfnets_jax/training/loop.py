"""A training run from its configuration to its summary: the one place that knows the order."""

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import ml_collections
import numpy as np

from nfnets_jax.data.pipeline import Batches, Reader
from nfnets_jax.data.unreadable import Unreadable
from nfnets_jax.training import reporting
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.optimizers import learning_rate
from nfnets_jax.training.plan import Plan, make_plan
from nfnets_jax.training.step import (
    DeviceBatch,
    Metrics,
    TrainState,
    fetch,
    make_evaluate,
    make_update,
    replicate,
    transfer,
)
from nfnets_jax.training.workdir import claim, note_classes

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
      WorkerError: processes that read images keep dying.
    """
    plan = make_plan(config)
    claim(workdir, config)
    note_classes(workdir, plan.dataset.class_names)
    with contextlib.closing(Checkpoints(workdir / "checkpoints", config.keep_checkpoints)) as saved:
        step = saved.latest_step() or 0
        summary = workdir / "summary.json"
        if step == config.num_steps and summary.exists():
            print(f"{workdir} is finished, all {step} steps of it: delete it to train anew")
            return json.loads(summary.read_text(encoding="utf-8"))
        report = reporting.Reporter(workdir, step, config.num_steps, config.batch_size)
        with contextlib.closing(report):
            report.say(plan.description)
            state, seconds = _train_steps(plan, step, saved, report)
        result = {
            "model": config.model.name,
            "data": config.data.name,
            "steps": int(state.step),
            "seconds": round(seconds, 1),
            "train": report.last("train"),
            "test": report.last("test"),
            "params_sha256": reporting.params_sha256(state.params),
            **reporting.environment(plan.devices),
        }
    reporting.write_json(summary, result)
    return result


def _train_steps(
    plan: Plan, done: int, saved: Checkpoints, report: reporting.Reporter
) -> tuple[TrainState, float]:
    """Takes the steps after the first ``done``.

    Returns:
      The final state, on the host, and the seconds that the run took, earlier starts included.
    """
    config, start = plan.config, time.monotonic()
    if done:
        host_state, progress = saved.restore(done, jax.eval_shape(plan.create_state))
        start -= progress["seconds"]
        report.say(f"resumed at step {done}")
    else:
        host_state, progress = plan.create_state(), {"batches": 0, "unreadable": []}
    train_account = Unreadable(
        "training images",
        len(plan.dataset.train),
        config.data.max_unreadable,
        report.say,
        progress["unreadable"],
    )
    test_account = Unreadable(
        "test images", len(plan.dataset.test or ()), config.data.max_unreadable, report.say
    )
    state = replicate(host_state, plan.devices)
    update = make_update(
        plan.model,
        plan.optimizer,
        plan.dataset,
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        devices=plan.devices,
    )
    evaluate = make_evaluate(plan.model, plan.dataset, devices=plan.devices)
    schedule = learning_rate(config)

    pending: list[Metrics] = []
    batches = _read(plan, plan.train_batches, report, progress["batches"])
    with contextlib.closing(batches), _signals() as received:
        for step in range(done + 1, config.num_steps + 1):
            with report.waiting():
                unreadable, batch = next(batches)
            train_account.add(unreadable)
            state, metrics = update(state, batch)
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
                report.train(step, figures | {"unreadable": len(train_account.names)})
                if not math.isfinite(figures["loss"]):
                    raise FloatingPointError(
                        f"the loss is {figures['loss']} at step {step}: lower "
                        "optimizer.base_learning_rate or optimizer.clipping"
                    )
            with report.pause():
                if plan.test_batches is not None and (last or _due(step, config.eval_every)):
                    report.test(step, _evaluate(plan, evaluate, state, report, test_account))
                if save:
                    host_state = fetch(state)
                    progress = {
                        "batches": batches.position,
                        "unreadable": train_account.names,
                        "seconds": time.monotonic() - start,
                    }
                    saved.save(step, host_state, progress)
            if stop and not last:
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


def _read(plan: Plan, batches: Batches, report: reporting.Reporter, start: int = 0) -> Reader:
    """Names of what could not be read, and batches on the devices, from a position on."""

    def prepare(batch: Any) -> tuple[list[str], DeviceBatch]:
        names = batch.pop("unreadable")
        return names.tolist(), transfer(batch, plan.devices)

    workers = plan.config.data.num_workers
    return Reader(batches, start, workers, prepare=prepare, tell=report.say)


def _evaluate(
    plan: Plan,
    evaluate: Any,
    state: TrainState,
    report: reporting.Reporter,
    account: Unreadable,
) -> dict[str, float]:
    """Metrics over all test images, of the parameters and of their moving average."""
    assert plan.test_batches is not None
    candidates = {"": state.params, "ema_": state.ema_params}
    totals: dict[str, float] = {}
    with contextlib.closing(_read(plan, plan.test_batches, report)) as batches:
        for unreadable, batch in batches:
            account.add(unreadable)
            for prefix, params in candidates.items():
                sums = fetch(evaluate(params, state.model_state, batch))
                for name, value in sums.items():
                    totals[prefix + name] = totals.get(prefix + name, 0.0) + float(value)
    examples = totals.pop("examples")
    del totals["ema_examples"]
    means = {name: total / examples for name, total in totals.items()}
    return means | {"examples": examples, "unreadable": len(account.names)}
