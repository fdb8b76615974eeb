"""Makes models for ImageNet of a winner: ``nfnet_c0`` to ``nfnet_c4``.

The names are registered by a module that the search writes, ``nfnet_c.py``: import it, or list it
in the field ``imports`` of a configuration.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfnets_jax.models import efficientnet
from nfnets_jax.models.nfnet import NFNetConfig
from nfnets_jax.training.reporting import write_atomically

from .baselines import scaled, with_size, within
from .cost import Cost, Limits, count
from .scaling import Rule, apply

MODULE = "nfnet_c.py"
SMALL = "nfnet_c_small"  # The winner itself, for small images.
_CLASSES, _CHANNELS = 1000, 3
_SIZE = 224  # Of C0, as of EfficientNet-B0.
# The networks, and those that each has at most the multiply-adds of.
REFERENCES = {f"nfnet_c{index}": f"efficientnet_b{index}" for index in range(5)}


def family(winner: NFNetConfig, rule: Rule) -> dict[str, NFNetConfig]:
    """Returns the networks for ImageNet by their names.

    C0 has the winner's blocks. Its stem and its first stage halve the resolution, and it is as wide
    as the parameters and multiply-adds of EfficientNet-B0 allow. C1 to C4 are scaled by the rule to
    the multiply-adds of EfficientNet-B1 to B4.

    Args:
      winner: the network for small images.
      rule: of its scaling.
    """
    costs = {name: imagenet_cost(efficientnet.VARIANTS[of]) for name, of in REFERENCES.items()}
    (first, bound), *rest = costs.items()
    coarse = dataclasses.replace(
        with_size(winner, _SIZE),
        stem=tuple((channels, 2) for channels, _ in winner.stem),
        strides=(2, *winner.strides[1:]),
    )
    limits = Limits(bound.parameters, bound.multiply_adds, _CHANNELS, _CLASSES)
    smallest = within(limits, lambda width: scaled(coarse, width))
    networks = {first: smallest}
    for name, cost in rest:
        work = cost.multiply_adds / bound.multiply_adds
        networks[name] = apply(rule, smallest, work, limits.times(work))
    return networks


def imagenet_cost(config: Any) -> Cost:
    """Returns the cost of a network at its training resolution, with 1000 classes."""
    return count(config, _CHANNELS, _CLASSES)


def write_module(file: Path, networks: Mapping[str, NFNetConfig], remark: str) -> None:
    """Writes a module that registers networks when it is imported.

    Args:
      file: to write.
      networks: by their names.
      remark: where they come from, a sentence for the module's docstring.
    """
    entries = "\n".join(
        f'    "{name}": NFNetConfig(\n{_arguments(config)}    ),'
        for name, config in networks.items()
    )
    write_atomically(
        file,
        f'"""Compact normalizer-free networks. {remark}"""\n\n'
        "from nfnets_jax import register_model\n"
        "from nfnets_jax.models.nfnet import NFNetConfig\n\n"
        f"VARIANTS = {{\n{entries}\n}}\n"
        "for name, config in VARIANTS.items():\n"
        "    register_model(name, config)\n",
    )


def _arguments(config: NFNetConfig) -> str:
    """Returns the options that are not the default, a line each."""
    fields = [
        (field.name, getattr(config, field.name))
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    ]
    return "".join(f"        {name}={value!r},\n" for name, value in fields)
