"""The Hugging Face hub: pulls the files of a model from a repository there, and pushes them to it.

The package ``huggingface_hub`` does both. Only the files that ``model_folder`` writes are pulled,
so no code comes with a model.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nfnets_jax.errors import InputError
from nfnets_jax.weights.run import PARAMS_FILE, STATE_FILE

_SCHEME = "hf://"
CARD = "README.md"
FILES = (PARAMS_FILE, STATE_FILE, "config.json", "classes.json", "curves.png", CARD)
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_REFERENCE = re.compile(rf"({_SCHEME})?(?P<name>{_NAME}/{_NAME})(@(?P<revision>[\w./-]+))?", re.A)


class Reference(NamedTuple):
    """A repository, ``OWNER/NAME``, and a commit, tag or branch of it; None is the newest."""

    name: str
    revision: str | None = None


def is_hub(text: str) -> bool:
    """Returns whether a text names a repository of the hub, as ``hf://OWNER/NAME``."""
    return text.startswith(_SCHEME)


def parse(text: str) -> Reference:
    """Reads ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, with or without ``hf://``.

    Raises:
      InputError: it has another form.
    """
    if match := _REFERENCE.fullmatch(text):
        return Reference(match["name"], match["revision"])
    raise InputError(
        f"{text!r} is no repository of the Hugging Face hub: it takes OWNER/NAME, or "
        "OWNER/NAME@REVISION"
    )


def local(weights: str) -> str:
    """Returns the path of weights on this machine; those of the hub are downloaded first, once.

    Args:
      weights: as ``load_pretrained`` takes them.

    Returns:
      The weights as they were given, unless they are ``hf://``: then the folder of a model that was
      pushed from here, or the ``model.safetensors`` of any other.

    Raises:
      InputError: as ``pull``.
    """
    if not is_hub(weights):
        return weights
    folder = pull(weights)
    return str(folder if _is_ours(folder) else folder / PARAMS_FILE)


def pull(reference: str, out: Path | None = None) -> Path:
    """Downloads the files of a model; those that are there already are not downloaded again.

    Args:
      reference: as ``parse`` takes it.
      out: folder for the files: a new one, or that of an earlier pull. None is the hub's cache.

    Returns:
      The folder.

    Raises:
      InputError: the package is not installed, the repository is of another form, cannot be
        reached or has no parameters, or the folder holds something else.
    """
    name, revision = parse(reference)
    if out is not None and not _may_hold_a_model(out):
        raise InputError(f"{out} holds something else: give a new folder")
    api = _huggingface_hub().HfApi()
    with _one_line(name):
        folder = Path(
            api.snapshot_download(
                repo_id=name,
                revision=revision,
                local_dir=None if out is None else str(out),
                allow_patterns=list(FILES),
            )
        )
    if not (folder / PARAMS_FILE).is_file():
        raise InputError(f"{name} on the Hugging Face hub has no {PARAMS_FILE}")
    return folder


def check_push(reference: str) -> str:
    """Returns the repository's name, once it is sure that this machine may ask to push.

    Raises:
      InputError: the repository is of another form or has a revision, the package is not
        installed, or there is no token.
    """
    name, revision = parse(reference)
    if revision is not None:
        raise InputError(f"a push makes a new revision, and {reference} names one: give {name}")
    if not _huggingface_hub().get_token():
        raise InputError("no token for the Hugging Face hub: run hf auth login, or set HF_TOKEN")
    return name


def push(folder: Path, reference: str, *, private: bool, log: Callable[[str], None]) -> str:
    """Uploads the files of a folder to a repository, which is made if it does not exist.

    A README.md that is there already stays, as its owner may have changed it.

    Args:
      folder: as ``model_folder.write_model_folder`` writes it.
      reference: ``OWNER/NAME``.
      private: whether a new repository is private; one that exists stays as it is.
      log: called with a line for each thing that is not uploaded.

    Returns:
      The repository's address.

    Raises:
      InputError: as ``check_push``, or the upload fails.
    """
    name = check_push(reference)
    api = _huggingface_hub().HfApi()
    with _one_line(name):
        address = str(api.create_repo(repo_id=name, private=private, exist_ok=True))
        has_card = api.file_exists(repo_id=name, filename=CARD)
        if has_card:
            log(f"{name} has a {CARD}, which stays as it is")
        api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            allow_patterns=[file for file in FILES if file != CARD or not has_card],
            commit_message="Upload by nfnets_jax",
        )
    return address


def sizes(folder: Path) -> list[tuple[str, int]]:
    """Returns the names of the files that ``push`` uploads, and their sizes in bytes."""
    files = [folder / name for name in FILES]
    return [(file.name, file.stat().st_size) for file in files if file.exists()]


def _is_ours(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"model", "data"} <= config.keys()


def _may_hold_a_model(folder: Path) -> bool:
    """Returns whether a folder is absent, empty, or marked by an earlier pull."""
    pulled = (folder / ".cache" / "huggingface").is_dir()
    return pulled or not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turns whatever the hub, the network or the disk raises into one line."""
    try:
        yield
    except Exception as error:  # The package and those below it have dozens of kinds.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{name} on the Hugging Face hub: {reason}") from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            "the Hugging Face hub needs a package: pip install 'nfnets_jax[hub]'"
        ) from error
    return huggingface_hub
