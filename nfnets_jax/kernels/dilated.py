"""Dilated convolution: ``conv2d`` on interleaved grids of pixels, each a smaller image."""

import jax
import jax.numpy as jnp

from nfnets_jax.kernels.convolution import Policy, conv2d


def dilated_conv2d(
    x: jax.Array, kernel: jax.Array, dilation: int, policy: Policy | None = None
) -> jax.Array:
    """Convolves images with a kernel whose weights are ``dilation`` pixels apart.

    Pixels that far apart form grids that do not meet, so each grid is convolved as an image of its
    own, in whichever form ``conv2d`` takes (the "hole algorithm", Chen et al. 2018,
    arXiv:1606.00915, section 3.1).

    Args:
      x: ``[N, H, W, C]`` images.
      kernel: ``[h, w, C / groups, O]``, odd ``h`` and ``w``, in the dtype of ``x``.
      dilation: pixels between neighbouring weights, in both directions; 1 is ``conv2d``.
      policy: how it is computed; the default one if None.

    Returns:
      ``[N, H, W, O]``, ``SAME`` padding, in the dtype of ``x``.
    """
    if dilation == 1 or kernel.shape[:2] == (1, 1):
        return conv2d(x, kernel, policy=policy)
    examples, height, width, channels = x.shape
    # Zeros that fill the last grids up are those that padding would put there.
    x = jnp.pad(x, ((0, 0), (0, -height % dilation), (0, -width % dilation), (0, 0)))
    rows, columns = x.shape[1] // dilation, x.shape[2] // dilation
    x = x.reshape(examples, rows, dilation, columns, dilation, channels)
    grids = x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)
    out = conv2d(grids, kernel, policy=policy)
    out = out.reshape(examples, dilation, dilation, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return out.reshape(examples, rows * dilation, columns * dilation, -1)[:, :height, :width]
