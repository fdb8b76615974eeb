"""Backbones whose last stages keep the resolution and dilate their convolutions instead."""

from collections.abc import Sequence
from typing import NamedTuple

from nfnets_jax.errors import InputError


class Dilation(NamedTuple):
    """How a stage computes at the resolution that the output stride asks for.

    Attributes:
      entry: pixels between the weights of 3x3 kernels up to the convolution that has the stride.
      rest: the same for all kernels after it.
    """

    entry: int = 1
    rest: int = 1

    @property
    def replaces_stride(self) -> bool:
        """Whether the stage's stride is replaced by dilation."""
        return self.entry != self.rest

    @property
    def inside(self) -> "Dilation":
        """The dilation of the blocks after the stage's first."""
        return Dilation(self.rest, self.rest)


NO_DILATION = Dilation()


def stage_dilations(
    stem_stride: int, strides: Sequence[int], output_stride: int | None
) -> tuple[Dilation, ...]:
    """Returns the dilation of each stage.

    A stride that would exceed the output stride becomes 1, and what follows is dilated by as much:
    each kernel sees the pixels that it was trained on (Chen et al. 2018, arXiv:1606.00915, section
    3.1).

    Args:
      stem_stride: pixels of the image between neighbouring outputs of the stem.
      strides: of the stages.
      output_stride: the largest stride of a stage's output over the image; None sets no limit.

    Raises:
      InputError: the stem's stride is larger than the output stride.
    """
    if output_stride is None:
        return (NO_DILATION,) * len(strides)
    if output_stride < stem_stride:
        raise InputError(
            f"output_stride is {output_stride}; the stem has {stem_stride} already, and it takes a "
            "number from there on"
        )
    found, reached, dilation = [], stem_stride, 1
    for stride in strides:
        if reached * stride <= output_stride:
            found.append(Dilation(dilation, dilation))
            reached *= stride
        else:
            found.append(Dilation(dilation, dilation * stride))
            dilation *= stride
    return tuple(found)
