"""Checkpoints of a run, by Orbax: written beside the training, complete or not there at all."""

from pathlib import Path
from typing import Any

import chex
import orbax.checkpoint as ocp


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
