"""The workdir of a run: the configuration and the class names that belong to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from nfnets_jax.errors import InputError
from nfnets_jax.training import hosts, reporting, schema

# Fields that may change when a run resumes, as they do not affect what it learns.
_FREE_FIELDS = frozenset(
    {
        "num_devices",
        "imports",
        "micro_batch_size",
        "log_every",
        "look_every",
        "wandb",
        "on_divergence",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "data.dir",
        "data.labels",
        "data.test_dir",
        "data.test_labels",
        "data.on_device",
        "data.num_workers",
        "data.decoder",
        "data.max_unreadable",
        "augment.on_device",
    }
)


def claim_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes the folder of a run, or accepts it for resuming, and writes ``config.json``.

    A folder without checkpoints is accepted for any run.

    Args:
      workdir: the folder.
      config: the configuration of the run.

    Raises:
      InputError: the folder cannot be made, or it holds a checkpoint of a run with another
        configuration; the message lists the differences. The folder stays as it was.
    """
    if any(workdir.glob("checkpoints/[0-9]*")):
        _check_same_run(workdir, config)
    if not hosts.is_first():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        reporting.write_json(workdir / "config.json", config.to_dict())
    except OSError as error:
        raise InputError(f"{workdir} cannot be a workdir: {error.strerror}") from error


def write_class_names(workdir: Path, names: Sequence[str]) -> None:
    """Writes ``classes.json``: the class names in the order of the labels."""
    if hosts.is_first():
        reporting.write_json(workdir / "classes.json", list(names))


def _check_same_run(workdir: Path, config: ml_collections.ConfigDict) -> None:
    try:
        written = _flatten(json.loads((workdir / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{workdir} has checkpoints but no readable config.json: use another workdir"
        ) from error
    before = schema.values_before() | written
    now = _flatten(json.loads(config.to_json()))
    free = _FREE_FIELDS | _idle_fields(now)
    differences = [
        f"{field} {before.get(field)!r} there, {now.get(field)!r} here"
        for field in sorted(before.keys() | now.keys())
        if field not in free and before.get(field) != now.get(field)
    ]
    if differences:
        raise InputError(
            f"{workdir} holds a run of another configuration ({'; '.join(differences)}): use "
            "another workdir"
        )


def _idle_fields(config: dict[str, Any]) -> set[str]:
    """Returns the fields that affect nothing, as what they belong to is off."""
    idle = set()
    if not config.get("optimizer.sam_rho"):
        idle |= {"optimizer.sam_ascent", "optimizer.sam_fraction"}
    if not config.get("augment.mixup_alpha") and not config.get("augment.cutmix"):
        idle |= {"augment.mixtures_per_pair"}
    return idle


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries to one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
