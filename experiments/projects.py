"""Projects outside the library, which register networks, optimizers and augmentations."""

import importlib
from collections.abc import Iterable

from nfnets_jax.errors import InputError


def import_projects(names: Iterable[str]) -> None:
    """Imports the modules that a configuration's ``imports`` names.

    Raises:
      InputError: a module is not found, or its code fails.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"imports has {name!r}, which cannot be imported: {reason}") from error
