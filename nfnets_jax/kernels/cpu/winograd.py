"""3x3 convolution in fewer products (Lavin and Gray 2016, arXiv:1509.09308, section 4.1).

Outputs are made in tiles of 3x3 or 4x4, from tiles of two pixels more on a side: transformed, times
the kernel, transformed, place by place, and transformed back. At 4x4 these are 36 products instead
of 144. All tiles' at one place are a product of matrices, and so are the transforms. Gradients are
made alike.
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

# By the side of a tile, where its polynomials are evaluated, besides infinity: of some tried, the
# points with the smallest errors of rounding. Those of 4 were 8e-7 of the outputs' deviation; of
# the usual 0, 1, -1, 2 and -2 17e-7, of plain sums 4e-7.
_POINTS = {3: (-1.25, -0.375, 0.375, 1.25), 4: (-1.5, -0.625, 0.0, 0.625, 1.5)}
# A group, though all are transformed together: their factors are read anew for each few images.
# NFNet-F0's step, pairs in one process: with 8 MiB for all groups 1.06 times as fast as with 4,
# with 16 1.08.
_CACHED_BYTES = 4 * 2**20


class _Transforms(NamedTuple):
    """Lavin and Gray's, of both axes at once: they multiply an array's first axis.

    Attributes:
      size: side of a tile of outputs.
      pixels: ``[places, places]``, of a tile of pixels.
      kernel: ``[places, 9]``.
      outputs: ``[size * size, places]``, of products.
      gradients: ``[places, places]``, the transpose of ``outputs`` for a tile of the outputs'
        gradients that is as large as one of pixels; those around the middle do not count.
    """

    size: int
    pixels: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray
    gradients: np.ndarray


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    rounding: DTypeLike | None = None,
    then: Callable[[jax.Array], Any] = lambda outputs: outputs,
) -> Any:
    """``[N, H, W, O]`` of ``[N, H, W, C]`` by a kernel ``[3, 3, C / groups, O]``, ``SAME`` padding.

    Computed in float32 at least, returned in the dtype of ``kernel``. With ``rounding``, what is
    multiplied is rounded to that dtype first, as ``x`` may be already, and products are summed as
    before. ``then`` takes the outputs of a few images while they are in the cache; what it makes of
    them is returned.
    """
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    transforms = _transforms(_size(x))
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
    gradient: Any,
    rounding: DTypeLike | None = None,
    first: Callable[[Any], jax.Array] = lambda gradient: gradient,
) -> tuple[jax.Array, jax.Array]:
    """Those of ``convolve``, for ``x`` and ``kernel``, by that of its result.

    ``first`` makes a few images' outputs' gradients of arrays ``[N, ...]``. ``rounding`` holds for
    all but the products that become the kernel's gradient: in XLA's CPU backend (jax 0.10.2) these
    gain nothing, as both their factors would have to be transposed or one be copied.
    """
    dtype = jnp.promote_types(kernel.dtype, jnp.float32)
    transforms = _transforms(_size(x))
    groups = x.shape[-1] // kernel.shape[2]
    mirrored = jnp.flip(_by_group(kernel.astype(dtype), groups), 0).swapaxes(2, 3)
    factors = _transform(transforms.kernel, mirrored)

    def portion(x: jax.Array, gradient: Any) -> tuple[jax.Array, jax.Array]:
        tiles = _tiles(first(gradient).astype(rounding or dtype), transforms.size, groups)
        seen = _tiles(x.astype(rounding or dtype), transforms.size, groups)
        pixels = _transform(transforms.pixels, seen)
        products = _transform(transforms.gradients, tiles)
        of_factors = jnp.einsum("pgti,pgto->pgio", pixels, products)
        of_x = _outputs(transforms, tiles, factors, x, rounding)
        return of_x.astype(kernel.dtype), of_factors

    of_x, of_factors = in_portions(
        portion, _CACHED_BYTES, _transformed_bytes(x, kernel), x, gradient
    )
    of_kernel = _transform(transforms.kernel.T, of_factors).swapaxes(1, 2)
    return of_x, of_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _size(x: jax.Array) -> int:
    """Of the tiles that take the fewest products."""
    return min(_POINTS, key=lambda size: _products(x, size))


@functools.cache
def _transforms(size: int) -> _Transforms:
    """By the algorithm of Cook and Toom: polynomials multiplied by their values at points."""
    points = np.array(_POINTS[size])
    others = [np.delete(points, place) for place in range(len(points))]
    scales = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    # Last comes infinity, where a polynomial's value is its highest coefficient.
    pixels = np.vstack([[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]])
    kernel = np.vstack([np.vander(points, 3, increasing=True) / scales, np.eye(3)[-1]])
    products = np.vstack([np.vander(points, size, increasing=True), np.eye(size)[-1]])
    gradients = np.pad(products, ((0, 0), (1, 1)))
    both = (np.kron(one, one) for one in (pixels, kernel, products.T, gradients))
    return _Transforms(size, *both)


def _transform(matrix: np.ndarray, array: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(array.dtype, jnp.float32)
    return jnp.tensordot(jnp.asarray(matrix, array.dtype), array, 1, preferred_element_type=dtype)


def _by_group(kernel: jax.Array, groups: int) -> jax.Array:
    """``[9, groups, C / groups, O / groups]``."""
    return kernel.reshape(9, kernel.shape[2], groups, -1).swapaxes(1, 2)


def _tiles(x: jax.Array, size: int, groups: int) -> jax.Array:
    """``[places, groups, tiles, C / groups]``: pixels of ``[n, H, W, C]`` as tiles see them.

    Around the images are zeros.
    """
    examples, height, width, _ = x.shape
    rows, columns = _tile_counts(x, size)
    # One tile more on each side, for the two pixels that a tile shares with the next.
    below, right = size * (rows + 1) - height - 1, size * (columns + 1) - width - 1
    padded = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    phases = padded.reshape(examples, rows + 1, size, columns + 1, size, groups, -1)
    phases = phases.transpose(2, 4, 5, 0, 1, 3, 6)
    # Columns before rows: the other order compiles two to three times as long in NFNets' stems.
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
    """``[n, H, W, O]`` of the size of ``x``, from tiles and a kernel's factors."""
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
    """Of an image, a pair of channels."""
    return (size + 2) ** 2 * math.prod(_tile_counts(x, size))


def _transformed_bytes(x: jax.Array, kernel: jax.Array) -> int:
    """Of an image's tiles, or of their products, whichever are wider, a group."""
    groups = x.shape[-1] // kernel.shape[2]
    return _products(x, _size(x)) * max(kernel.shape[2], kernel.shape[3] // groups) * 4
