"""NF-ResNets: pre-activation ResNets without normalization.

Brock et al. 2021a, arXiv:2101.08692, sections 3 to 5. The depths are those of He et al. 2016,
arXiv:1603.05027; those of 288 and 600 are the paper's own.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

from nfnets_jax.models.nfnet import NFNetConfig

_config = functools.partial(
    NFNetConfig,
    expansion=0.25,
    group_size=None,
    se_ratio=0.0,
    final_expansion=0,
    activation="relu",
    name="NF_ResNet",
    stem_name="initial_conv",
    block_name="nf_res_block",
    spatial=("conv1",),
    pools_shortcut=False,
    test_crop="padded",
)

_DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}

# A quarter as wide, for images of 32 pixels, like ``resnet26_small``.
_SMALL = _config(
    width=(64, 128, 256, 512),
    depth=(2, 2, 2, 2),
    stem=((64, 1),),
    train_size=32,
    test_size=32,
)

# Squeeze-excite (se_ratio=0.5) and SiLU (activation="silu") are the paper's options.
VARIANTS: Mapping[str, NFNetConfig] = MappingProxyType(
    {
        **{
            f"nf_resnet{layers}": _config(
                width=(256, 512, 1024, 2048),
                depth=depth,
                stem=((64, 2),),
                stem_kernel=7,
                stem_pool=True,
                train_size=224,
                test_size=224,
                dropout_rate=0.25,
                stochastic_depth_rate=0.1,
            )
            for layers, depth in _DEPTHS.items()
        },
        "nf_resnet26_small": _SMALL,
        # The starting point of NFNets (Brock et al. 2021b, arXiv:2102.06171, section 5), as small.
        "nf_seresnext26d_small": dataclasses.replace(
            _SMALL,
            pools_shortcut=True,
            expansion=0.5,
            group_size=16,
            se_ratio=0.5,
            activation="gelu",
        ),
    }
)
