"""Projects outside the library, which register networks, optimizers and augmentations."""

import importlib
import importlib.util
from collections.abc import Iterable

from nfnets_jax.errors import InputError


def import_projects(names: Iterable[str]) -> None:
    """Imports the modules that a configuration's ``imports`` names.

    A module of this package is named as in a checkout, ``experiments.cifar10.training``, wherever
    the package is: a run goes from a checkout to an installed library, and back.

    Raises:
      InputError: a module is not found, or its code fails.
    """
    for name in names:
        try:
            importlib.import_module(_own(name) or name)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"imports has {name!r}, which cannot be imported: {reason}") from error


def _own(name: str) -> str | None:
    """Returns the present name of a module of this package; None for a module of others."""
    package, _, rest = name.partition(".")
    if package != "experiments" or not rest:
        return None
    # A user may have another package called experiments.
    if importlib.util.find_spec(f".{rest.partition('.')[0]}", __package__) is None:
        return None
    return f"{__package__}.{rest}"
