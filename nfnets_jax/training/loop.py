"""A training run from its configuration to its summary: the one place that knows the order."""

import contextlib
import json
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
from nfnets_jax.training import hosts, reporting, telemetry
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.divergence import Diverged, Watch
from nfnets_jax.training.experiment import Plan, make_plan
from nfnets_jax.training.memory import compile_update
from nfnets_jax.training.profiling import Profile
from nfnets_jax.training.recipe import learning_rate
from nfnets_jax.training.step import (
    DeviceBatch,
    Metrics,
    TrainState,
    fetch,
    make_evaluate,
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


def train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    profile_steps: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains by the configuration, or goes on where the run in ``workdir`` stopped.

    Args:
      config: as the files of ``experiments/configs`` make it.
      workdir: gets ``config.json``, ``metrics.jsonl``, ``checkpoints/``, TensorBoard events,
        ``curves.png`` and, in the end, ``summary.json``.
      profile_steps: the first and the last step of which ``profile/`` gets a profile.

    Returns:
      The summary.

    Raises:
      InputError: the configuration cannot be run, here or in this ``workdir``, which is left as it
        was.
      Interrupted: a signal came; starting again goes on.
      Diverged: the loss or the gradient is not finite any more; ``divergence.json`` tells of it.
      WorkerError: processes that read images keep dying.
    """
    plan = make_plan(config)
    claim(workdir, config)
    note_classes(workdir, plan.dataset.class_names)
    summary = workdir / "summary.json"
    with contextlib.closing(Checkpoints(workdir / "checkpoints", config.keep_checkpoints)) as saved:
        step = saved.latest_step() or 0
        if step == config.num_steps and summary.exists():
            print(f"{workdir} is finished, all {step} steps of it: delete it to train anew")
            return json.loads(summary.read_text(encoding="utf-8"))
        resumed = saved.restore_latest(jax.eval_shape(plan.create_state), print)
        done, state, progress = resumed or (0, plan.create_state(), _START)
        skipped: list[int] = []
        while True:
            report = reporting.Reporter(
                workdir if hosts.is_first() else None, done, config.num_steps, config.batch_size
            )
            try:
                with contextlib.closing(report):
                    report.say(plan.description)
                    if done:
                        report.say(f"resumed at step {done}")
                    else:
                        report.model(plan.summary)
                    profile = Profile(workdir / "profile", profile_steps, report.say)
                    state, seconds = _train_steps(
                        plan, state, progress, saved, report, profile, workdir
                    )
                break
            except Diverged as diverged:
                resumed = saved.restore_latest(jax.eval_shape(plan.create_state), print)
                if config.on_divergence != "skip" or not resumed or skipped.count(resumed[0]) >= 3:
                    raise
                done, state, progress = resumed
                skipped.append(done)
                progress["batches"] += diverged.step - done
                report.say(f"{diverged}; the images up to there are skipped")
        checksum = reporting.params_sha256(state.params)
        hosts.check_equal(checksum, "parameters")
        result = {
            "model": config.model.name,
            "data": config.data.name,
            "steps": int(state.step),
            "seconds": round(seconds, 1),
            "train": report.last("train"),
            "test": report.last("test"),
            "params_sha256": checksum,
            **reporting.environment(plan.devices),
        }
    if hosts.is_first():
        reporting.write_json(summary, result)
    return result


# What a run remembers beside its state.
_START: dict[str, Any] = {"batches": 0, "unreadable": [], "seconds": 0.0}


def _train_steps(
    plan: Plan,
    host_state: TrainState,
    progress: dict[str, Any],
    saved: Checkpoints,
    report: reporting.Reporter,
    profile: Profile,
    workdir: Path,
) -> tuple[TrainState, float]:
    """Takes the steps that are left.

    Returns:
      The final state, on the host, and the seconds that the run took, earlier starts included.
    """
    config, done = plan.config, int(host_state.step)
    start = time.monotonic() - progress["seconds"]
    share = config.data.max_unreadable
    train_account = Unreadable(
        "training images", len(plan.dataset.train), share, report.say, progress["unreadable"]
    )
    test_account = Unreadable("test images", len(plan.dataset.test or ()), share, report.say)
    state = plan.to_devices(host_state)
    evaluate = make_evaluate(plan.model, plan.dataset, devices=plan.devices)
    schedule = learning_rate(config)

    update: Any = None
    compiled_for: tuple[int, ...] = ()
    watch = Watch()
    pending: list[Metrics] = []
    batches = _read(plan, plan.train_batches, report, progress["batches"])
    with contextlib.closing(batches), contextlib.closing(profile), _signals() as received:
        votes = hosts.Votes(plan.devices)
        for step in range(done + 1, config.num_steps + 1):
            with report.waiting():
                unreadable, batch = next(batches)
            train_account.add(unreadable)
            if batch["image"].shape != compiled_for:
                if compiled_for:
                    report.say(f"from step {step} on {batch['image'].shape[2]} pixels")
                else:
                    report.images(step, fetch(batch["image"])[: config.log_images])
                with report.pause():
                    update = compile_update(plan, state, batch, report.say)
                compiled_for = batch["image"].shape
            profile.before(step)
            state, metrics = update(state, batch)
            profile.after(step, metrics)
            pending.append(metrics)
            state = state._replace(step=votes.cast(bool(received), state.step))
            if step == done + 1:
                jax.block_until_ready(metrics)
                report.compiled(step)
            jax.block_until_ready(pending[max(0, len(pending) - 1 - _STEPS_AHEAD)])

            last, stop = step == config.num_steps, votes.count(before=_STEPS_AHEAD) > 0
            save = last or stop or _due_to_save(step, config.checkpoint_every)
            if save or _due(step, config.log_every):
                taken = [fetch(metrics) for metrics in pending]
                pending = []
                looks = [metrics.pop("clipping", None) for metrics in taken]
                figures = _mean(taken) | {"learning_rate": float(schedule(step - 1))}
                report.train(step, figures | {"unreadable": len(train_account.names)})
                for number, look in enumerate(looks, step - len(taken) + 1):
                    if look is not None and number % config.look_every == 0:
                        report.clipping(number, telemetry.named(plan.model.unstacked(look)))
                diverged = watch.first_divergence(step - len(taken) + 1, taken)
                if diverged is not None:
                    index = batches.position - 1 - (step - diverged)
                    names = plan.train_batches.names(index)
                    raise watch.report(workdir, names, plan.to_host(state.params))
            with report.pause():
                accuracy = None
                if plan.test_batches is not None and (last or _due(step, config.eval_every)):
                    tested = _evaluate(plan, evaluate, state, report, test_account)
                    report.test(step, tested)
                    accuracy = max(tested["top1"], tested["ema_top1"])
                if _due(step, config.histogram_every):
                    report.histograms(step, plan.to_host(state.params))
                if save:
                    host_state = plan.to_host(state)
                    progress = {
                        "batches": batches.position,
                        "unreadable": train_account.names,
                        "seconds": time.monotonic() - start,
                    }
                    saved.save(step, host_state, progress, accuracy)
            if stop and not last:
                raise Interrupted((received or [signal.SIGTERM])[0], step)
    return host_state, time.monotonic() - start


def _due(step: int, every: int) -> bool:
    """Whether something is due that comes ``every`` so many steps, 0 for never."""
    return every > 0 and step % every == 0


def _due_to_save(step: int, every: int) -> bool:
    """Whether a checkpoint is due, so that a kill costs at most ``every`` steps.

    One that is being written does not count yet, and training waits for it when the next is due:
    so there is one halfway, too.
    """
    return _due(step, every) or (every > 1 and step % every == every // 2)


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


def _mean(steps: list[Metrics]) -> dict[str, float]:
    """Means over the steps, of metrics on the host."""
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
    """Metrics over all test images, of the parameters and of their moving average.

    An average that keeps nothing is the parameters, and is not looked at.
    """
    assert plan.test_batches is not None
    candidates = {"": state.params}
    if plan.config.ema_decay:
        candidates["ema_"] = state.ema_params
    totals: dict[str, float] = {}
    with contextlib.closing(_read(plan, plan.test_batches, report)) as batches:
        for unreadable, batch in batches:
            account.add(unreadable)
            for prefix, params in candidates.items():
                sums = fetch(evaluate(params, state.model_state, batch))
                for name, value in sums.items():
                    totals[prefix + name] = totals.get(prefix + name, 0.0) + float(value)
    examples = totals.pop("examples")
    totals.pop("ema_examples", None)
    means = {name: total / examples for name, total in totals.items()}
    if not plan.config.ema_decay:
        means |= {f"ema_{name}": mean for name, mean in means.items()}
    return means | {"examples": examples, "unreadable": len(account.names)}
