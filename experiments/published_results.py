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
      tpu_ms, gpu_ms: milliseconds of a training step with 32 images per device, on a TPUv3 core and
        on a V100, from ``TIMES_SOURCE``.
      source: of the accuracies.
      note: how its training differs from that of its family.
    """

    top1: float | None = None
    top5: float | None = None
    tpu_ms: float | None = None
    gpu_ms: float | None = None
    source: str = ""
    note: str = ""


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "nfnet_f0": Published(83.6, 96.8, 73.3, 56.7, _NFNETS),
        "nfnet_f1": Published(84.7, 97.1, 158.5, 133.9, _NFNETS),
        "nfnet_f2": Published(85.1, 97.3, 295.8, 226.3, _NFNETS),
        "nfnet_f3": Published(85.7, 97.5, 532.2, 524.5, _NFNETS),
        "nfnet_f4": Published(85.9, 97.6, 1033.3, 1190.6, _NFNETS),
        "nfnet_f5": Published(86.0, 97.6, 1398.5, 2177.1, _NFNETS),
        "nfnet_f6": Published(86.5, 97.9, 2774.1, None, _NFNETS, "with SAM"),
        "efficientnet_b0": Published(77.1, None, 51.1, None, _EFFICIENTNETS),
        "efficientnet_b1": Published(79.1, None, None, None, _EFFICIENTNETS),
        "efficientnet_b2": Published(80.1, None, None, None, _EFFICIENTNETS),
        "efficientnet_b3": Published(81.6, None, 129.5, None, _EFFICIENTNETS),
        "efficientnet_b4": Published(82.9, None, 245.9, None, _EFFICIENTNETS),
        "efficientnet_b5": Published(83.6, None, 450.5, None, _EFFICIENTNETS),
        "efficientnet_b6": Published(None, None, 775.7, None),
        "efficientnet_b7": Published(84.7, 97.0, 1397.0, 1753.3, _NFNETS),
    }
)
