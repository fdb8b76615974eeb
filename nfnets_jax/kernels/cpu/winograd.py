"""3x3 convolution in fewer products (Lavin and Gray 2016, arXiv:1509.09308, section 4.1).

Outputs are computed in tiles of 3x3 or 4x4, from tiles of pixels that are two larger on a side. A
tile of pixels and the kernel are transformed and multiplied place by place, and the products are
transformed to a tile of outputs: 36 products instead of 144 for 4x4. The products of all tiles at
one place are a product of matrices, and the transforms are products of matrices too. The gradients
have the same form.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from nfnets_jax.kernels.cpu.portions import in_portions

# Points where a tile's polynomials are evaluated, besides infinity, by the side of the tile: those
# of the smallest rounding error among some tried. The error for 4 was 8e-7 of the outputs' standard
# deviation; it was 17e-7 for the usual 0, 1, -1, 2, -2 and 4e-7 for plain sums.
_POINTS = {3: (-1.25, -0.375, 0.375, 1.25), 4: (-1.5, -0.625, 0.0, 0.625, 1.5)}
# Size of what is transformed at a time, a group, though all groups are transformed together: the
# kernel's factors are read once for each portion. NFNet-F0's step, pairs in one process: 1.06 times
# as fast with 8 MiB for all groups as with 4, 1.08 times with 16.
_CACHED_BYTES = 4 * 2**20
# Smaller products gain nothing. NFNet-F0's step, 8 images of 192 pixels on one CPU thread, pairs in
# one process: 1024 is 1.02 times as fast as 4096, and 256 1.01 times as fast as 1024.
_MIN_PIXELS = 1024
_MIN_CHANNELS = 32


class _Transforms(NamedTuple):
    """Lavin and Gray's transforms of both image axes at once, which multiply an array's first axis.

    Attributes:
      size: side of a tile of outputs.
      pixels: ``[places, places]``, from a tile of pixels.
      kernel: ``[places, 9]``, from a kernel.
      outputs: ``[size * size, places]``, from products to a tile of outputs.
      cotangents: ``[places, places]``, the transpose of ``outputs`` for a tile of the outputs'
        cotangents as large as one of pixels; those around the middle count nothing.
    """

    size: int
    pixels: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray
    cotangents: np.ndarray


def is_faster(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Returns whether this form takes the convolution, and is faster than a dense one a group."""
    outputs_a_group = kernel.shape[3] * kernel.shape[2] // x.shape[-1]
    return (
        stride == 1
        and kernel.shape[:2] == (3, 3)
        and isinstance(x.shape[0], int)  # An exported program takes any number of images.
        and math.prod(x.shape[:3]) >= _MIN_PIXELS
        and max(kernel.shape[2], outputs_a_group) >= _MIN_CHANNELS
    )


def rounded(array: jax.Array, rounding: DTypeLike | None) -> jax.Array:
    """Casts an array that is only multiplied to what it is multiplied as, which saves memory."""
    return array.astype(rounding or array.dtype)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    rounding: DTypeLike | None = None,
    then: Callable[[jax.Array], Any] = lambda outputs: outputs,
) -> Any:
    """Convolves ``x`` ``[N, H, W, C]`` with ``[3, 3, C / groups, O]``, ``SAME`` padding.

    Args:
      x: images; they may be rounded already.
      kernel: its dtype is that of the outputs; products are summed in float32 or wider.
      rounding: dtype to which factors are rounded; None does not round.
      then: applied to the outputs of a few images at a time, while they are in the cache.

    Returns:
      What ``then`` returns, joined over the images: without it ``[N, H, W, O]``.
    """
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    transforms = _transforms(_tile_size(x))
    groups = x.shape[-1] // kernel.shape[2]
    factors = _transform(transforms.kernel, _by_group(kernel.astype(dtype), groups))

    def portion(x: jax.Array) -> tuple[Any, tuple[()]]:
        tiles = _tiles(x.astype(rounding or dtype), transforms.size, groups)
        outputs = _outputs(transforms, tiles, factors, x, rounding)
        return then(outputs.astype(kernel.dtype)), ()

    each, _ = in_portions(portion, _CACHED_BYTES, _transformed_bytes(x, kernel), x)
    return each


def gradients(
    x: jax.Array,
    kernel: jax.Array,
    cotangent: Any,
    rounding: DTypeLike | None = None,
    first: Callable[[Any], jax.Array] = lambda cotangent: cotangent,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of ``convolve`` with respect to ``x`` and ``kernel``.

    Args:
      x, kernel: as ``convolve`` was called with them.
      cotangent: of its result, a tree of arrays ``[N, ...]``.
      rounding: dtype to which factors are rounded, but not those of the kernel's gradient: in XLA's
        CPU backend (jax 0.10.2) these gain nothing, as a factor would have to be copied.
      first: maps the cotangent of a few images' results to that of their outputs
        ``[n, H, W, O]``.
    """
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    transforms = _transforms(_tile_size(x))
    groups = x.shape[-1] // kernel.shape[2]
    mirrored = jnp.flip(_by_group(kernel.astype(dtype), groups), 0).swapaxes(2, 3)
    factors = _transform(transforms.kernel, mirrored)

    def portion(x: jax.Array, cotangent: Any) -> tuple[jax.Array, jax.Array]:
        tiles = _tiles(first(cotangent).astype(rounding or dtype), transforms.size, groups)
        seen = _tiles(x.astype(rounding or dtype), transforms.size, groups)
        pixels = _transform(transforms.pixels, seen)
        products = _transform(transforms.cotangents, tiles)
        of_factors = jnp.einsum("pgti,pgto->pgio", pixels, products)
        of_x = _outputs(transforms, tiles, factors, x, rounding)
        return of_x.astype(kernel.dtype), of_factors

    of_x, of_factors = in_portions(
        portion, _CACHED_BYTES, _transformed_bytes(x, kernel), x, cotangent
    )
    of_kernel = _transform(transforms.kernel.T, of_factors).swapaxes(1, 2)
    return of_x, of_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _tile_size(x: jax.Array) -> int:
    """Returns the side of the tiles that take the fewest products."""
    return min(_POINTS, key=lambda size: _products(x, size))


@functools.cache
def _transforms(size: int) -> _Transforms:
    """Returns the transforms of Cook and Toom's algorithm.

    It multiplies polynomials by their values at points.
    """
    points = np.array(_POINTS[size])
    others = [np.delete(points, place) for place in range(len(points))]
    scales = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    # The last point is infinity, where a polynomial's value is its highest coefficient.
    pixels = np.vstack([[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]])
    kernel = np.vstack([np.vander(points, 3, increasing=True) / scales, np.eye(3)[-1]])
    products = np.vstack([np.vander(points, size, increasing=True), np.eye(size)[-1]])
    cotangents = np.pad(products, ((0, 0), (1, 1)))
    both = (np.kron(one, one) for one in (pixels, kernel, products.T, cotangents))
    return _Transforms(size, *both)


def _transform(matrix: np.ndarray, array: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(array.dtype, jnp.float32)
    return jnp.tensordot(jnp.asarray(matrix, array.dtype), array, 1, preferred_element_type=dtype)


def _by_group(kernel: jax.Array, groups: int) -> jax.Array:
    """Reshapes a kernel to ``[9, groups, C / groups, O / groups]``."""
    return kernel.reshape(9, kernel.shape[2], groups, -1).swapaxes(1, 2)


def _tiles(x: jax.Array, size: int, groups: int) -> jax.Array:
    """Cuts images ``[n, H, W, C]``, zeros around them, into overlapping tiles.

    Returns:
      ``[places, groups, tiles, C / groups]``.
    """
    examples, height, width, _ = x.shape
    rows, columns = _tile_counts(x, size)
    # One tile more at the end of each axis, for the two pixels that a tile shares with the next.
    below, right = size * (rows + 1) - height - 1, size * (columns + 1) - width - 1
    padded = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    phases = padded.reshape(examples, rows + 1, size, columns + 1, size, groups, -1)
    phases = phases.transpose(2, 4, 5, 0, 1, 3, 6)
    # Columns before rows: NFNets' stems take two to three times as long to compile the other way.
    wide = jnp.concatenate([phases[..., :-1, :], phases[:, :2, ..., 1:, :]], axis=1)
    tiles = jnp.concatenate([wide[..., :-1, :, :], wide[:2, ..., 1:, :, :]])
    return tiles.reshape((size + 2) ** 2, groups, examples * rows * columns, -1)


def _outputs(
    transforms: _Transforms,
    tiles: jax.Array,
    factors: jax.Array,
    x: jax.Array,
    rounding: DTypeLike | None,
) -> jax.Array:
    """Returns outputs ``[n, H, W, O]`` for images of the size of ``x``, from tiles and factors."""
    pixels, dtype = _transform(transforms.pixels, tiles), factors.dtype
    if rounding:
        pixels, factors = pixels.astype(rounding), factors.astype(rounding)
    products = jnp.einsum("pgti,pgio->pgto", pixels, factors, preferred_element_type=dtype)
    size, (rows, columns) = transforms.size, _tile_counts(x, transforms.size)
    outputs = _transform(transforms.outputs, products)
    _, groups, _, channels = outputs.shape
    outputs = outputs.reshape(size, size, groups, -1, rows, columns, channels)
    outputs = outputs.transpose(3, 4, 0, 5, 1, 2, 6)
    outputs = outputs.reshape(-1, size * rows, size * columns, groups * channels)
    return outputs[:, : x.shape[1], : x.shape[2]]


def _tile_counts(x: jax.Array, size: int) -> tuple[int, int]:
    return -(-x.shape[1] // size), -(-x.shape[2] // size)


def _products(x: jax.Array, size: int) -> int:
    """Returns the number of products for an image and a pair of channels."""
    return (size + 2) ** 2 * math.prod(_tile_counts(x, size))


def _transformed_bytes(x: jax.Array, kernel: jax.Array) -> int:
    """Returns the size of an image's tiles or of their products, the wider of the two, a group."""
    groups = x.shape[-1] // kernel.shape[2]
    return _products(x, _tile_size(x)) * max(kernel.shape[2], kernel.shape[3] // groups) * 4
