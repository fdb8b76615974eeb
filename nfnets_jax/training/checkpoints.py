"""Checkpoints of a run, written by Orbax in the background."""

import errno
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from nfnets_jax.errors import InputError
from nfnets_jax.weights.run import restore_as_numpy

_BEST = "top1"


class Checkpoint(NamedTuple):
    """The state that a run starts from or resumes at.

    Attributes:
      step: number of updates so far.
      state: tree of NumPy arrays.
      progress: JSON object: the position in the data and whatever else the loop keeps.
    """

    step: int
    state: Any
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, of which it keeps the newest and the most accurate.

    A checkpoint appears under its step's name only when it is complete. With several hosts, every
    host calls every method, and all see the same folder.
    """

    def __init__(self, directory: Path, keep: int):
        """Opens the folder, or makes it.

        Args:
          directory: the folder of the checkpoints.
          keep: how many of the newest to keep, besides the most accurate one.
        """
        best = policies.BestN(
            n=1,
            get_metric_fn=lambda metrics: metrics[_BEST],
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            create=True,
            cleanup_tmp_directories=True,  # A killed run may have left some.
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        # Compression takes time from training, and trained parameters hardly shrink.
        arrays = ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=options,
            item_handlers={"state": arrays, "progress": ocp.JsonCheckpointHandler()},
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: chex.ArrayTree,
        progress: dict[str, Any],
        accuracy: float | None = None,
    ) -> None:
        """Waits for the previous checkpoint and starts to write one in the background.

        Args:
          step: number of updates so far.
          state: tree of NumPy arrays, which must not change before the next ``save`` or ``close``.
          progress: JSON object.
          accuracy: decides which checkpoint is the most accurate; None if it is unknown.

        Raises:
          InputError: this checkpoint or the previous one cannot be written.
        """
        try:
            self._check_space(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_without_none(state)),
                    progress=ocp.args.JsonSave({**progress, "checksum": _checksum(state)}),
                ),
                metrics=None if accuracy is None else {_BEST: accuracy},
            )
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def _check_space(self, state: chex.ArrayTree) -> None:
        """Raises an OSError if the disk is full, before Orbax fails with pages of messages."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._manager.directory).free
        if free < needed:
            missing = f"{needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} free"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {missing}")

    def restore_latest(
        self, template: chex.ArrayTree, warn: Callable[[str], None]
    ) -> Checkpoint | None:
        """Reads the newest undamaged checkpoint.

        Newer checkpoints that are damaged move to ``damaged/`` beside the folder.

        Args:
          template: structure, shapes and dtypes of the state.
          warn: called with one line for each damaged checkpoint.

        Returns:
          The checkpoint, or None if there is none.

        Raises:
          InputError: all checkpoints are damaged; they stay where they are.
        """
        self._manager.wait_until_finished()
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                checkpoint = self._restore(step, template)
            except Exception as error:
                damaged[step] = (str(error) or type(error).__name__).splitlines()[0][:200]
            else:
                for number, reason in damaged.items():
                    warn(f"checkpoint {number} is damaged and skipped: {reason}")
                self._move_away(damaged)
                return checkpoint
        if damaged:
            step, reason = max(damaged.items())
            raise InputError(
                f"every checkpoint in {self._manager.directory} is damaged (newest, {step}: "
                f"{reason}): use another workdir or delete them"
            )
        return None

    def _move_away(self, steps: Iterable[int]) -> None:
        if jax.process_index() == 0:
            folder = self._manager.directory.parent / "damaged"
            folder.mkdir(exist_ok=True)
            for step in steps:
                target = folder / f"{step}_{time.time_ns()}"
                (self._manager.directory / str(step)).rename(target)
        multihost_utils.sync_global_devices("damaged checkpoints are moved")
        self._manager.reload()

    def _restore(self, step: int, template: chex.ArrayTree) -> Checkpoint:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=restore_as_numpy(_without_none(template)), progress=ocp.args.JsonRestore()
            ),
        )
        state = restored.state
        if hasattr(template, "_replace"):
            state = template._replace(**state)
        if _checksum(state) != restored.progress["checksum"]:
            raise ValueError("its arrays do not match their checksum")
        return Checkpoint(step, state, restored.progress)

    def close(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          InputError: it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error
        finally:
            self._manager.close()

    def _write_error(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return InputError(
            f"a checkpoint cannot be written in {self._manager.directory}: {reason}; the previous "
            "checkpoints are complete"
        )


def _without_none(state: Any) -> Any:
    """Returns a named tuple's fields but those that are None; Orbax would write them.

    Runs of before such a field have checkpoints without it.
    """
    if not hasattr(state, "_asdict"):
        return state
    return {name: value for name, value in state._asdict().items() if value is not None}


def _checksum(state: chex.ArrayTree) -> int:
    """Computes the CRC-32 of the bytes of all arrays, in order."""
    checksum = 0
    for leaf in jax.tree.leaves(state):
        # NumPy's stubs do not declare arrays as buffers.
        content: Any = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        checksum = zlib.crc32(content, checksum)
    return checksum
