"""Reads a run's folder: its configuration, its classes, and the parameters of its checkpoints."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nfnets_jax.errors import InputError
from nfnets_jax.weights import files
from nfnets_jax.weights.checking import check_class_names
from nfnets_jax.weights.published import Tree

# Instead of checkpoints, in the folder of a model that was made for others.
PARAMS_FILE, STATE_FILE = "model.safetensors", "state.safetensors"


class Run(NamedTuple):
    """The description of a run.

    Attributes:
      config: the content of ``config.json``.
      class_names: in the order of the labels; None if the run has no ``classes.json``.
    """

    config: dict[str, Any]
    class_names: tuple[str, ...] | None


def read_run(path: Path) -> Run:
    """Reads the description of a run.

    Args:
      path: the workdir, its ``checkpoints``, or one of these.

    Raises:
      InputError: there is no run, or its files are damaged.
    """
    folder = find_run(path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = folder / "classes.json"
        classes = json.loads(names.read_text(encoding="utf-8")) if names.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder} has no readable config.json and classes.json") from error
    return Run(config, None if classes is None else check_class_names(str(names), classes))


def find_run(path: Path) -> Path:
    """Returns the workdir of a run.

    Args:
      path: the workdir, its ``checkpoints``, or one of these.

    Raises:
      InputError: there is no run.
    """
    for folder in (path.absolute(), *path.absolute().parents[:2]):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(f"no config.json in {path}: give the workdir of a run")


def read_params(path: Path, average: bool) -> Tree:
    """Reads the parameters of a run, without knowing its optimizer.

    Args:
      path: the workdir or its ``checkpoints``, for the newest checkpoint; or a checkpoint; or the
        folder of a model that was made for others.
      average: whether to read the moving average of the parameters.

    Raises:
      InputError: there is no checkpoint, or it cannot be read.
    """
    if (path / PARAMS_FILE).is_file():
        if not average:
            raise InputError(f"{path} has one set of parameters, and not a run's last ones")
        return _read_safetensors(path / PARAMS_FILE)
    return _read_part(path, "ema_params" if average else "params")


def read_model_state(path: Path, average: bool) -> Tree:
    """Reads a network's running statistics as ``read_params`` reads parameters; {} if it has none.

    A run that averages the parameters alone has one set of statistics, for both.

    Raises:
      InputError: as ``read_params``.
    """
    if (path / PARAMS_FILE).is_file():
        state = path / STATE_FILE
        return _read_safetensors(state) if state.is_file() else {}
    averaged = _read_part(path, "ema_model_state") if average else {}
    return averaged or _read_part(path, "model_state")


def restore_as_numpy(template: Any, **options: Any) -> Any:
    """Returns the Orbax arguments that restore a tree of this structure as NumPy arrays."""
    import orbax.checkpoint as ocp

    arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
    return ocp.args.PyTreeRestore(item=template, restore_args=arrays, **options)


def _read_safetensors(path: Path) -> Tree:
    return files.unflatten(path, files.read_safetensors(path))


def _read_part(path: Path, part: str) -> Tree:
    # Orbax takes a second to import, and only runs need it.
    import orbax.checkpoint as ocp

    if not (path / "state").is_dir():
        steps = [step for step in path.glob("[0-9]*") if (step / "state").is_dir()]
        steps = steps or [state.parent for state in path.glob("checkpoints/[0-9]*/state")]
        if not steps:
            raise InputError(f"no checkpoints in {path}: give the workdir of a run")
        path = max(steps, key=lambda step: int(step.name))
    directory = (path / "state").absolute()
    try:
        reader = ocp.PyTreeCheckpointHandler()
        saved = reader.metadata(directory).tree.get(part) or {}
        if not saved:
            return {}
        template = {part: jax.tree.map(lambda _: np.empty(0), saved)}
        restored = reader.restore(directory, args=restore_as_numpy(template, partial_restore=True))
        return restored[part]
    # Orbax and the storage below it raise a dozen kinds of errors for a damaged file.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path} cannot be read: {reason}") from error
