"""Published results of networks on ImageNet."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

TIMES_SOURCE = "Brock et al. 2021b, arXiv:2102.06171"
_NFNETS = TIMES_SOURCE
_EFFICIENTNETS = "Tan and Le 2019, arXiv:1905.11946, as in MosaicML Composer's model card"


class Published(NamedTuple):
    """Results of one network; None where no published figure was found.

    Attributes:
      top1, top5: accuracy on ImageNet's validation images, percent.
      tpu_ms, gpu_ms: milliseconds of a training step with 32 images per device, on 32 devices of a
        TPUv3 and on one V100, from ``TIMES_SOURCE``.
      source: of the accuracies.
      note: how its training differs from that of its family.
    """

    top1: float | None = None
    top5: float | None = None
    tpu_ms: float | None = None
    gpu_ms: float | None = None
    source: str = ""
    note: str = ""


PUBLISHED: Mapping[str, tuple[Published, ...]] = MappingProxyType(
    {
        "nfnet_f0": (Published(83.6, 96.8, 73.3, 56.7, _NFNETS),),
        "nfnet_f1": (Published(84.7, 97.1, 158.5, 133.9, _NFNETS),),
        "nfnet_f2": (Published(85.1, 97.3, 295.8, 226.3, _NFNETS),),
        "nfnet_f3": (Published(85.7, 97.5, 532.2, 524.5, _NFNETS),),
        "nfnet_f4": (Published(85.9, 97.6, 1033.3, 1190.6, _NFNETS),),
        "nfnet_f5": (
            Published(86.0, 97.6, 1398.5, 2177.1, _NFNETS),
            Published(86.3, 97.9, 1958.0, None, _NFNETS, "with SAM"),
        ),
        "nfnet_f6": (Published(86.5, 97.9, 2774.1, None, _NFNETS, "with SAM"),),
        "nfnet_f0_bn": (Published(83.4, None, 111.7, None, _NFNETS),),
        "nfnet_f1_bn": (Published(84.4, None, 258.0, None, _NFNETS),),
        "nfnet_f2_bn": (Published(85.1, None, 396.3, None, _NFNETS),),
        "nfnet_f3_bn": (Published(85.5, None, 617.7, None, _NFNETS),),
        "resnet50": (Published(78.6, 94.3, 41.6, 35.3, _NFNETS),),
        "efficientnet_b0": (Published(77.1, 93.3, 51.1, 44.8, _NFNETS),),
        "efficientnet_b1": (Published(79.1, None, None, None, _EFFICIENTNETS),),
        "efficientnet_b2": (Published(80.1, None, None, None, _EFFICIENTNETS),),
        "efficientnet_b3": (Published(81.6, 95.7, 129.5, 116.6, _NFNETS),),
        "efficientnet_b4": (Published(82.9, 96.4, 245.9, 221.6, _NFNETS),),
        "efficientnet_b5": (Published(83.7, 96.7, 450.5, 458.9, _NFNETS),),
        "efficientnet_b6": (Published(84.0, 96.8, 775.7, 868.2, _NFNETS),),
        "efficientnet_b7": (Published(84.7, 97.0, 1397.0, 1753.3, _NFNETS),),
    }
)

# NFNets step by step, F0 to F3: top-1 in percent and milliseconds of a step on a TPUv3, from tables
# 2 and 6 of ``TIMES_SOURCE``. Each row adds to the one above, and the last replaces.
ABLATION: Mapping[str, tuple[tuple[float, float], ...]] = MappingProxyType(
    {
        "SE-ResNeXt-D, new depths": ((80.4, 58.0), (81.7, 116.0), (82.0, 211.7), (82.3, 369.5)),
        "+ new widths": ((80.9, 64.1), (81.8, 133.9), (82.0, 252.2), (82.3, 441.5)),
        "+ second 3x3 convolution": ((81.3, 73.3), (82.2, 158.5), (82.4, 295.8), (82.7, 532.2)),
        "+ MixUp": ((82.2, 73.3), (82.9, 158.5), (83.1, 295.8), (83.5, 532.2)),
        "+ RandAugment": ((83.2, 73.3), (84.6, 158.5), (84.8, 295.8), (85.0, 532.2)),
        "+ CutMix: NFNet": ((83.6, 73.3), (84.7, 158.5), (85.1, 295.8), (85.7, 532.2)),
        "batch-normalized NFNet": ((83.4, 111.7), (84.4, 258.0), (85.1, 396.3), (85.5, 617.7)),
    }
)
