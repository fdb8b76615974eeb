"""Checkpoints of a run, by Orbax: written beside the training, complete or not there at all."""

import errno
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from nfnets_jax.errors import InputError
from nfnets_jax.weights.run import restore_as_numpy

_BEST = "top1"


class Checkpoints:
    """The checkpoints of one run: the newest ``keep`` of them, and the best.

    Each holds ``state``, a tree of arrays, and ``progress``, a JSON object: the position in the
    data and whatever else the loop has to remember. With several hosts all call every method; the
    folder is one that all of them see.
    """

    def __init__(self, directory: Path, keep: int):
        best = policies.BestN(
            n=1,
            get_metric_fn=lambda metrics: metrics[_BEST],
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            create=True,
            cleanup_tmp_directories=True,  # A kill may have left some.
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        # Trained parameters hardly shrink, and compressing them takes time from the training.
        arrays = ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=options,
            item_handlers={
                "state": arrays,
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: chex.ArrayTree,
        progress: dict[str, Any],
        accuracy: float | None = None,
    ) -> None:
        """Begins to write; ``state`` must not change until ``close``, nor its arrays be reused.

        ``accuracy``, where it is known, decides which checkpoint is the best.

        Raises:
          InputError: this or the one before could not be written.
        """
        try:
            self._check_space(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    progress=ocp.args.JsonSave({**progress, "checksum": _checksum(state)}),
                ),
                metrics=None if accuracy is None else {_BEST: accuracy},
            )
        except (OSError, ValueError) as error:
            raise self._not_written(error) from error

    def _check_space(self, state: chex.ArrayTree) -> None:
        """Looks before writing: Orbax and what is below it tell of a full disk in pages."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._manager.directory).free
        if free < needed:
            missing = f"{needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} free"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {missing}")

    def restore_latest(
        self, template: chex.ArrayTree, tell: Callable[[str], None]
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Step, state and progress of the newest checkpoint that is whole; None if there is none.

        Newer ones that are damaged are told, and moved to ``damaged/`` beside the checkpoints.

        Args:
          template: structure, shapes and dtypes of the state.
          tell: is given a line.

        Raises:
          InputError: there are checkpoints, and none is whole; they are left as they are.
        """
        self._manager.wait_until_finished()
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, progress = self._restore(step, template)
            except Exception as error:
                damaged[step] = (str(error) or type(error).__name__).splitlines()[0][:200]
            else:
                for number, reason in damaged.items():
                    tell(f"checkpoint {number} is damaged, passed over: {reason}")
                self._move_away(damaged)
                return step, state, progress
        if damaged:
            step, reason = max(damaged.items())
            raise InputError(
                f"no checkpoint in {self._manager.directory} is whole (newest, {step}: {reason}): "
                "take another --workdir or delete them"
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

    def _restore(self, step: int, template: chex.ArrayTree) -> tuple[Any, dict[str, Any]]:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=restore_as_numpy(template), progress=ocp.args.JsonRestore()
            ),
        )
        if _checksum(restored.state) != restored.progress["checksum"]:
            raise ValueError("its arrays are not those that were written")
        return restored.state, restored.progress

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          InputError: the last checkpoint could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._not_written(error) from error
        finally:
            self._manager.close()

    def _not_written(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return InputError(
            f"a checkpoint cannot be written in {self._manager.directory}: {reason}; those before "
            "it are whole"
        )


def _checksum(state: chex.ArrayTree) -> int:
    """CRC-32 over the bytes of all arrays, in order."""
    checksum = 0
    for leaf in jax.tree.leaves(state):
        # Any: NumPy's stubs do not say that its arrays are buffers.
        content: Any = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        checksum = zlib.crc32(content, checksum)
    return checksum
