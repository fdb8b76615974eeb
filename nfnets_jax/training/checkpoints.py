"""Checkpoints of a run, by Orbax: written beside the training, complete or not there at all."""

from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

from nfnets_jax.errors import InputError


class Checkpoints:
    """The checkpoints of one run, the newest ``keep`` of them.

    Each holds ``state``, a tree of arrays, and ``progress``, a JSON object: the position in the
    data and whatever else the loop has to remember.
    """

    def __init__(self, directory: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: chex.ArrayTree, progress: dict[str, Any]) -> None:
        """Begins to write; ``state`` must not change until ``close``, nor its arrays be reused."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
            ),
        )

    def restore(self, step: int, template: chex.ArrayTree) -> tuple[Any, dict[str, Any]]:
        """The state and the progress of a step; ``template`` gives structure, shapes and dtypes."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.progress

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_params(run: Path, average: bool) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of a run, ``{module: {parameter: array}}``, without knowing its optimizer.

    Args:
      run: its workdir, or that one's ``checkpoints``, for the newest checkpoint; or a checkpoint.
      average: whether to read the moving average of the parameters.

    Raises:
      InputError: there is no checkpoint, or none that can be read.
    """
    if not (run / "state").is_dir():
        steps = [path for path in run.glob("[0-9]*") if (path / "state").is_dir()]
        steps = steps or [path.parent for path in run.glob("checkpoints/[0-9]*/state")]
        if not steps:
            raise InputError(f"no checkpoints in {run}: give the workdir of a run")
        run = max(steps, key=lambda path: int(path.name))
    part = "ema_params" if average else "params"
    directory = (run / "state").absolute()
    try:
        reader = ocp.PyTreeCheckpointHandler()
        saved = reader.metadata(directory).tree[part]
        template = {part: jax.tree.map(lambda _: np.empty(0), saved)}
        as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
        wanted = ocp.args.PyTreeRestore(item=template, restore_args=as_arrays, partial_restore=True)
        return reader.restore(directory, args=wanted)[part]
    # What Orbax and the storage below it raise of a damaged file is a dozen kinds of errors.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {run} cannot be read: {reason}") from error
