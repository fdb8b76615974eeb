"""The networks that the search is measured against, each as wide as the limits allow."""

import dataclasses
from collections.abc import Callable
from typing import Any

from nfnets_jax.errors import InputError
from nfnets_jax.models import efficientnet, nf_regnet, nfnet
from nfnets_jax.models.efficientnet import EfficientNetConfig
from nfnets_jax.models.nfnet import NFNetConfig

from .cost import Limits, widest
from .space import rounded

# Widths over those of the published networks, between which the largest is sought.
_LOW, _HIGH = 0.05, 8.0
_NO_NOISE: dict[str, Any] = {"dropout_rate": 0.0, "stochastic_depth_rate": 0.0}


def scaled(config: NFNetConfig, width: float, depth: float = 1.0) -> NFNetConfig:
    """Returns a network with all widths and depths times factors, rounded."""
    return dataclasses.replace(
        config,
        width=tuple(rounded(width * channels) for channels in config.width),
        depth=tuple(max(1, round(depth * blocks)) for blocks in config.depth),
        stem=tuple((rounded(width * channels), stride) for channels, stride in config.stem),
    )


def with_size(config: Any, size: int) -> Any:
    """Returns a network for images of ``size`` pixels a side."""
    return dataclasses.replace(config, train_size=size, test_size=size)


def within(limits: Limits, make: Callable[[float], Any]) -> Any:
    """Returns the widest network of a family within limits, by its width factor.

    Raises:
      InputError: no width is.
    """
    width = widest(make, limits, _LOW, _HIGH)
    if width is None:
        raise InputError(
            f"no {type(make(_LOW)).__name__} has at most {limits.parameters:,} parameters and "
            f"{limits.multiply_adds:,} multiply-adds: use larger limits"
        )
    return make(width)


def efficientnet_within(
    limits: Limits, size: int, shallow: bool, depth: float = 1.0
) -> EfficientNetConfig:
    """Returns the widest form of EfficientNet-B0 for small images within limits.

    Args:
      limits: bounds of its cost.
      size: side of the images in pixels.
      shallow: whether only one stage is left, of one block.
      depth: blocks over those of B0.

    Raises:
      InputError: no width is within the limits.
    """
    small = dataclasses.replace(
        with_size(efficientnet.VARIANTS["efficientnet_b0_small"], size),
        depth_factor=depth,
        **_NO_NOISE,
    )
    if shallow:
        few = tuple(stage._replace(blocks=1) for stage in small.stages[1:2])
        small = dataclasses.replace(small, stages=few)
    return within(limits, lambda width: dataclasses.replace(small, width_factor=width))


def nfnet_within(limits: Limits, size: int, shallow: bool) -> NFNetConfig:
    """Returns an NFNet with the ratios of F0's widths and depths within limits: the anchor."""
    config = dataclasses.replace(
        nfnet.VARIANTS["nfnet_tiny"],
        width=(32, 64, 192, 192),
        depth=(1, 2, 6, 3),
        stem=((16, 1),),
        group_size=8,
    )
    return _small_images(config, limits, size, shallow)


def nf_regnet_within(limits: Limits, size: int, shallow: bool) -> NFNetConfig:
    """Returns NF-RegNet-B0, with the strides of small images, within limits."""
    published = nf_regnet.VARIANTS["nf_regnet_b0"]
    config = dataclasses.replace(
        published,
        stem=((published.width[0], 1),),
        strides=(1, 2, 2, 2),
        **_NO_NOISE,
    )
    return _small_images(config, limits, size, shallow)


def _small_images(config: NFNetConfig, limits: Limits, size: int, shallow: bool) -> NFNetConfig:
    if shallow:  # One stage of one block.
        first: dict[str, Any] = {name: getattr(config, name)[:1] for name in ("width", "strides")}
        config = dataclasses.replace(config, **first, depth=(1,))
    sized = with_size(config, size)
    return within(limits, lambda width: scaled(sized, width))
