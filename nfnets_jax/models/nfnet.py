"""NFNets: the networks of Brock et al. 2021b, arXiv:2102.06171, section 5, and small relatives."""

import functools
from collections.abc import Mapping
from types import MappingProxyType

from nfnets_jax.models.nf_block import BlockForm
from nfnets_jax.models.nf_network import Family, NFNetworkConfig

_FAMILY = Family(
    name="NFNet",
    stem_name="stem_conv{}",
    stem_kernel=3,
    stem_pool=False,
    block=BlockForm(
        name="nf_block",
        spatial=("conv1", "conv1b"),
        expands_input=False,
        excites_bottleneck=False,
        pools_shortcut=True,
    ),
)
_config = functools.partial(
    NFNetworkConfig,
    family=_FAMILY,
    expansion=0.5,
    se_ratio=0.5,
    final_expansion=2,
    classifier_std=0.01,
    activation="gelu",
)


def _imagenet(
    scale: int, train_size: int, test_size: int, dropout_rate: float, wide: bool
) -> NFNetworkConfig:
    """F``scale - 1``: the blocks of F0 times ``scale`` (NFNets, table 1 and appendix)."""
    width = (384, 768, 2048, 2048) if wide else (256, 512, 1536, 1536)
    return _config(
        width=width,
        depth=(scale, 2 * scale, 6 * scale, 3 * scale),
        stem=((16, 2), (32, 1), (64, 1), (width[0] // 2, 2)),
        strides=(1, 2, 2, 2),
        train_size=train_size,
        test_size=test_size,
        dropout_rate=dropout_rate,
        stochastic_depth_rate=0.25,
        group_size=128,
    )


# What grows with the variant: training size, test size, dropout rate.
_SCALED = (
    (192, 256, 0.2),
    (224, 320, 0.3),
    (256, 352, 0.4),
    (320, 416, 0.4),
    (384, 512, 0.5),
    (416, 544, 0.5),
    (448, 576, 0.5),
    (480, 608, 0.5),
)

VARIANTS: Mapping[str, NFNetworkConfig] = MappingProxyType(
    {
        **{
            f"nfnet_f{index}{suffix}": _imagenet(index + 1, *scaled, wide=bool(suffix))
            for suffix in ("", "_plus")
            for index, scaled in enumerate(_SCALED)
        },
        # For small images: no resolution is lost before the first stage.
        "nfnet_micro": _config(
            width=(64, 128, 256),
            depth=(1, 1, 1),
            stem=((32, 1),),
            strides=(1, 2, 2),
            train_size=16,
            test_size=16,
            group_size=32,
        ),
        "nfnet_tiny": _config(
            width=(64, 128, 256, 256),
            depth=(1, 2, 3, 1),
            stem=((16, 1), (32, 1)),
            strides=(1, 2, 2, 2),
            train_size=32,
            test_size=32,
            group_size=32,
        ),
    }
)
