"""Configurations by name. Each file is a family: ``VARIANTS`` and ``get_config(name)``.

``lm`` belongs to a study of its own and is none of them.
"""

from pathlib import Path

from ml_collections import ConfigDict

from nfnets_jax.errors import InputError, nearest

from . import (
    cifar10,
    detection,
    digits,
    efficientnet,
    finetune,
    jft,
    nf_regnet,
    nf_resnet,
    nfnet,
    resnet,
)

_FAMILIES = (
    nfnet,
    nf_resnet,
    nf_regnet,
    resnet,
    efficientnet,
    jft,
    finetune,
    digits,
    cifar10,
    detection,
)
# The family of each configuration.
FAMILIES = {name: family for family in _FAMILIES for name in family.VARIANTS}


def get_config(name: str) -> ConfigDict:
    """Returns the configuration called ``name``."""
    return FAMILIES[name].get_config(name)


def listing() -> str:
    """Returns the names of all configurations in lines to read, a paragraph a family."""
    paragraphs = []
    for family in _FAMILIES:
        about = (family.__doc__ or "").splitlines()[0]
        paragraphs.append("\n".join([about, *(f"    {name}" for name in family.VARIANTS)]))
    return "\n".join(paragraphs)


def find(name: str) -> str:
    """Returns where a configuration is, as ``FILE`` or, with an argument for it, ``FILE:ARGUMENT``.

    Args:
      name: one of ``FAMILIES``, or already a path of one of the two forms.

    Raises:
      InputError: there is neither; the message has the nearest names.
    """
    if name in FAMILIES:
        return f"{FAMILIES[name].__file__}:{name}"
    if name and Path(name.partition(":")[0]).is_file():
        return name
    raise InputError(f"no configuration {name!r}; {nearest(name, sorted(FAMILIES))}")
