"""Weights & Biases: a run there that gets the figures of the run here."""

import secrets
from pathlib import Path
from typing import Any

import ml_collections

from nfnets_jax.errors import InputError
from nfnets_jax.training import hosts, reporting


def check_wandb(config: ml_collections.ConfigDict) -> None:
    """Checks that the package is there if the configuration wants it on this host.

    Raises:
      InputError: it is not installed.
    """
    if config.wandb and hosts.is_first():
        _import_wandb(config.wandb)


def open_wandb(config: ml_collections.ConfigDict, workdir: Path) -> Any:
    """Starts the run of a workdir at Weights & Biases, or resumes it; None if it has none.

    Its id is in ``wandb_id.txt`` of the workdir: it goes where the workdir goes, and another run
    in the same place is another run there. Only the first host has a run.

    Raises:
      InputError: the package is not installed, or cannot start the run.
    """
    if not config.wandb or not hosts.is_first():
        return None
    wandb = _import_wandb(config.wandb)
    try:
        return wandb.init(
            project=config.wandb,
            id=_run_id(workdir),
            name=workdir.absolute().name,
            dir=str(workdir),
            config=config.to_dict(),
            resume="allow",
            allow_val_change=True,  # A resumed run may have other devices, for example.
        )
    except Exception as error:  # Of the package, of the network below it, or of the files.
        reason = str(error).partition("\n")[0]
        raise InputError(f"Weights & Biases cannot start the run: {reason}") from error


def _import_wandb(project: str) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            f"wandb is {project!r}, which needs a package: pip install 'nfnets_jax[wandb]'"
        ) from error
    return wandb


def _run_id(workdir: Path) -> str:
    file = workdir / "wandb_id.txt"
    if not file.exists():
        reporting.write_atomically(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8").strip()
