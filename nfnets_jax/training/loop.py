"""The training loop: a run from its configuration to its summary."""

import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from nfnets_jax.data.read_errors import ReadErrors
from nfnets_jax.devices import fetch
from nfnets_jax.training import hosts, reporting, telemetry, tracking
from nfnets_jax.training.checkpoints import Checkpoint, Checkpoints
from nfnets_jax.training.divergence import Diverged, DivergenceMonitor
from nfnets_jax.training.evaluation import Evaluator
from nfnets_jax.training.experiment import Experiment, build_experiment
from nfnets_jax.training.memory import compile_update
from nfnets_jax.training.profiling import Profiler
from nfnets_jax.training.recipe import learning_rate_schedule
from nfnets_jax.training.signals import Interrupted, StopSignals
from nfnets_jax.training.step import Metrics, TrainState
from nfnets_jax.training.strides import Strides
from nfnets_jax.training.workdir import claim_workdir, write_class_names

# Strides that are queued on the devices while the host prepares the next one.
_STRIDES_AHEAD = 2
# How often a run may diverge after the same checkpoint.
_MAX_ROLLBACKS = 3


def train(
    config: ml_collections.ConfigDict,
    workdir: Path,
    profile_steps: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains a network, or resumes the run in ``workdir``.

    Args:
      config: such as ``experiments/configs`` define them.
      workdir: folder for ``config.json``, ``classes.json``, ``metrics.jsonl``, ``checkpoints/``,
        TensorBoard events, ``curves.png`` and, at the end, ``summary.json``.
      profile_steps: first and last step to profile into ``profile/``.

    Returns:
      The content of ``summary.json``.

    Raises:
      InputError: the configuration cannot be run, or not in this ``workdir``, which stays as it
        was.
      Interrupted: SIGINT or SIGTERM stopped the run; it is saved.
      Diverged: the loss or the gradient is not finite; ``divergence.json`` has the details.
      WorkerError: worker processes that read images keep dying.
    """
    experiment = build_experiment(config)
    tracking.check_wandb(config)
    claim_workdir(workdir, config)
    write_class_names(workdir, experiment.dataset.class_names)

    with contextlib.closing(
        Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    ) as checkpoints:
        summary_file = workdir / "summary.json"
        if checkpoints.latest_step() == config.num_steps and summary_file.exists():
            print(f"{workdir} is finished, all {config.num_steps} steps: delete it to train again")
            return json.loads(summary_file.read_text(encoding="utf-8"))

        template = jax.eval_shape(experiment.create_state)
        start = checkpoints.restore_latest(template, print) or Checkpoint(
            0, experiment.create_state(), {"batches": 0, "unreadable": [], "seconds": 0.0}
        )
        rollbacks: Counter[int] = Counter()
        while True:
            reporter = reporting.Reporter(
                workdir if hosts.is_first() else None,
                start.step,
                config.num_steps,
                config.batch_size,
                tracking.open_wandb(config, workdir),
                experiment.task.score,
            )
            profiler = Profiler(workdir / "profile", profile_steps, reporter.log)
            try:
                with contextlib.closing(reporter), contextlib.closing(profiler):
                    state, seconds = _train_steps(
                        experiment, start, checkpoints, reporter, profiler, workdir
                    )
                break
            except Diverged as diverged:
                if config.on_divergence == "stop":
                    raise
                restored = checkpoints.restore_latest(template, print)
                if restored is None or rollbacks[restored.step] == _MAX_ROLLBACKS:
                    raise
                start = restored
                rollbacks[start.step] += 1
                start.progress["batches"] += diverged.step - start.step
                reporter.log(f"{diverged}; the images up to that step are skipped")

        checksum = reporting.params_sha256(state.params)
        hosts.check_equal(checksum, "parameters")
        summary = {
            "model": config.model.name,
            "data": config.data.name,
            "steps": int(state.step),
            "seconds": round(seconds, 1),
            "train": reporter.last("train"),
            "test": reporter.last("test"),
            "params_sha256": checksum,
            **reporting.environment(experiment.devices),
        }
    # The last checkpoint is complete now.
    if hosts.is_first():
        reporting.write_json(summary_file, summary)
    return summary


def _train_steps(
    experiment: Experiment,
    start: Checkpoint,
    checkpoints: Checkpoints,
    reporter: reporting.Reporter,
    profiler: Profiler,
    workdir: Path,
) -> tuple[TrainState, float]:
    """Takes the steps from ``start`` to the last.

    Returns:
      The final state, as NumPy arrays, and the seconds that the run took, interruptions excluded.
    """
    config = experiment.config
    start_time = time.monotonic() - start.progress["seconds"]
    reporter.log(experiment.description)
    if start.step:
        reporter.log(f"resumed at step {start.step}")
    else:
        reporter.model(experiment.summarize_model())

    host_state = start.state
    state = experiment.to_devices(host_state)
    shapes = jax.eval_shape(experiment.model.stacked, host_state.params)
    update = None  # Compiled for the first batch.
    schedule = learning_rate_schedule(config)
    evaluate = None
    if experiment.test_batches is not None:
        evaluate = Evaluator(experiment, experiment.test_batches, reporter.log)
    monitor = DivergenceMonitor()
    read_errors = ReadErrors(
        "training images",
        len(experiment.dataset.train),
        config.data.max_unreadable,
        reporter.log,
        start.progress["unreadable"],
    )
    batches = experiment.read_training(start.progress["batches"], reporter.log)
    # Lengths and metrics of the newest strides, on the devices.
    pending: list[tuple[int, Metrics]] = []
    # Those of the steps since the last report, on the host.
    unreported: list[dict[str, float]] = list(start.progress.get("unreported", ()))

    def host_is_due(step: int) -> bool:
        intervals = (config.log_every, config.eval_every, config.histogram_every)
        return (
            step == start.step + 1
            or any(_is_due(step, every) for every in intervals)
            or _is_save_due(step, config.checkpoint_every)
            or profiler.borders(step)
        )

    strides = Strides(start.step, config.num_steps, batches.longest_stride, host_is_due)

    with (
        contextlib.closing(batches),
        StopSignals(experiment.devices, delay=_STRIDES_AHEAD) as stop_signals,
    ):
        for first, step in strides:
            length = step - first + 1
            with reporter.waiting_for_data():
                unreadable, batch = batches.take(length)
            read_errors.add(unreadable)
            if update is None:
                reporter.images(step, experiment.augmented(batch, config.log_images))
                with reporter.untimed():
                    update = compile_update(experiment, state, batch, reporter.log)

            profiler.before_step(first)
            begun = time.monotonic()
            state, metrics = update(state, batch)
            profiler.after_step(step, metrics)
            pending.append((length, metrics))
            state = state._replace(step=stop_signals.share(state.step))
            if step == start.step + 1:
                jax.block_until_ready(metrics)
                reporter.first_step_done(step)
            elif not strides.is_timed:
                jax.block_until_ready(metrics)
                strides.settle((time.monotonic() - begun) / length)
            jax.block_until_ready(pending[max(0, len(pending) - 1 - _STRIDES_AHEAD)])

            is_last = step == config.num_steps
            stop = stop_signals.stop_requested()
            save = is_last or stop or _is_save_due(step, config.checkpoint_every)

            report = is_last or _is_due(step, config.log_every)
            if save or report:
                steps = [each for stride in pending for each in _metrics_of_steps(*stride)]
                pending.clear()
                oldest = step - len(steps) + 1
                for number, figures in enumerate(steps, oldest):
                    stats = figures.pop("clipping", None)
                    if stats is not None and _is_due(number, config.look_every):
                        stats = experiment.model.unstacked(telemetry.figures_of(stats, shapes))
                        reporter.clipping(number, telemetry.named_figures(stats))
                unreported += [
                    {name: float(value) for name, value in each.items()} for each in steps
                ]
                if report:
                    names = unreported[0]
                    means = {name: float(np.mean([s[name] for s in unreported])) for name in names}
                    means["learning_rate"] = float(schedule(step - 1))
                    means["unreadable"] = len(read_errors.messages)
                    reporter.train(step, means, batches.stage_shares())
                    unreported.clear()
                diverged = monitor.first_divergence(oldest, steps)
                if diverged is not None:
                    index = batches.position - 1 - (step - diverged)
                    examples = experiment.train_batches.names(index)
                    raise monitor.report(workdir, examples, experiment.to_host(state.params))

            with reporter.untimed():
                accuracy = None
                if evaluate and (is_last or _is_due(step, config.eval_every)):
                    test = evaluate(state)
                    reporter.test(step, test)
                    score = experiment.task.score.name
                    accuracy = max(test[score], test[f"ema_{score}"])
                if _is_due(step, config.histogram_every):
                    reporter.histograms(step, experiment.to_host(state.params))
                if save:
                    host_state = experiment.to_host(state)
                    progress = {
                        "batches": batches.position,
                        "unreadable": read_errors.messages,
                        "unreported": list(unreported),
                        "seconds": time.monotonic() - start_time,
                    }
                    checkpoints.save(step, host_state, progress, accuracy)

            if stop and not is_last:
                raise Interrupted(stop_signals.number, step)
    return host_state, time.monotonic() - start_time


def _metrics_of_steps(length: int, metrics: Metrics) -> list[dict[str, Any]]:
    """Fetches the metrics of a stride's steps; those of a single batch have no axis of steps."""
    fetched = fetch(metrics)
    if fetched["loss"].ndim == 0:
        return [fetched]
    return [{name: values[i] for name, values in fetched.items()} for i in range(length)]


def _is_due(step: int, every: int) -> bool:
    """Returns whether something is due that happens every ``every`` steps, 0 for never."""
    return every > 0 and step % every == 0


def _is_save_due(step: int, every: int) -> bool:
    """Returns whether a checkpoint is due, so that a killed run loses at most ``every`` steps.

    A checkpoint counts once it is completely written, which is certain only when the next one is
    due. So two are started every ``every`` steps.
    """
    return _is_due(step, every) or (every > 1 and step % every == every // 2)
