"""Convolution as XLA's one operation for it."""

import jax
from jax import lax


def native_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    groups: int = 1,
    precision: lax.Precision | None = None,
) -> jax.Array:
    """Convolves ``x`` ``[N, H, W, C]`` with ``[h, w, C / groups, O]``, ``SAME`` padding.

    Gradients have the same precision.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision,
    )
