"""NF-RegNets: RegNets without normalization, scaled as EfficientNets are.

Brock et al. 2021a, arXiv:2101.08692, section 6 and appendix. They derive from RegNetY (Radosavovic
et al. 2020, arXiv:2003.13678) and EfficientNet (Tan and Le 2019, arXiv:1905.11946).
"""

from collections.abc import Mapping
from types import MappingProxyType

from nfnets_jax.models.nfnet import NFNetConfig

_WIDTH_MULTIPLIER = 0.75
# B0 to B8: widths before the multiplier, depths, training size, test size, dropout rate.
_SCALED = (
    ((48, 104, 208, 440), (1, 3, 6, 6), 192, 224, 0.2),
    ((48, 104, 208, 440), (2, 4, 7, 7), 224, 256, 0.2),
    ((56, 112, 232, 488), (2, 4, 8, 8), 240, 272, 0.3),
    ((56, 128, 248, 528), (2, 5, 9, 9), 288, 320, 0.3),
    ((64, 144, 288, 616), (2, 6, 11, 11), 320, 384, 0.4),
    ((80, 168, 336, 704), (3, 7, 14, 14), 384, 456, 0.4),
    ((88, 184, 376, 792), (3, 8, 16, 16), 448, 528, 0.5),
    ((96, 208, 416, 880), (4, 10, 19, 19), 512, 600, 0.5),
    ((104, 232, 456, 968), (4, 11, 22, 22), 600, 672, 0.5),
)


def _variant(
    widths: tuple[int, ...],
    depth: tuple[int, ...],
    train_size: int,
    test_size: int,
    dropout_rate: float,
) -> NFNetConfig:
    width = tuple(int(_WIDTH_MULTIPLIER * channels) for channels in widths)
    return NFNetConfig(
        width=width,
        depth=depth,
        stem=((width[0], 2),),
        strides=(2, 2, 2, 2),
        train_size=train_size,
        test_size=test_size,
        test_crop="padded",
        dropout_rate=dropout_rate,
        stochastic_depth_rate=0.1,
        expansion=2.25,
        first_expansion=1.0,
        group_size=8,
        # EfficientNet-B0's 1280 features over B0's last width, both before the multiplier.
        final_expansion=1280 / 440,
        classifier_std=0.0,
        activation="silu",
        name="NF_RegNet",
        stem_name="initial_conv",
        spatial=("conv1",),
        expands_input=True,
        excites_bottleneck=True,
    )


VARIANTS: Mapping[str, NFNetConfig] = MappingProxyType(
    {f"nf_regnet_b{index}": _variant(*scaled) for index, scaled in enumerate(_SCALED)}
)
