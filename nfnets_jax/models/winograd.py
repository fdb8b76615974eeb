"""3x3 convolution in fewer products (Lavin and Gray 2016, arXiv:1509.09308, section 4.1).

2x2 outputs are a tile of 4x4 pixels, transformed, times the kernel, transformed: 16 products where
there were 36, and all tiles' together are 16 products of matrices. Gradients are made alike.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nfnets_jax.models.portions import in_portions

# Lavin and Gray's B^T, G and A^T for F(2x2, 3x3).
_OF_PIXELS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_OF_KERNELS = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
_OF_PRODUCTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_CACHED_BYTES = 10 * 2**20

# Rows of arrays of one shape.
_Grid = Sequence[Sequence[jax.Array]]


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``[N, H, W, O]`` from ``[N, H, W, I]`` by a dense kernel ``[3, 3, I, O]``, ``SAME`` padding.

    Computed in float32 at least, returned in the dtype of ``x``.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    factors = _transformed_kernel(kernel.astype(dtype))
    each, _ = in_portions(
        lambda x: (_outputs(_tiles(x.astype(dtype)), factors, x.shape[1:3]).astype(x.dtype), ()),
        _CACHED_BYTES,
        _transformed_bytes(x, kernel),
        x,
    )
    return each


def gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Those of ``convolve``, for ``x`` and ``kernel``, by that of its result."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    mirrored = jnp.flip(kernel.astype(dtype), (0, 1)).swapaxes(2, 3)
    factors = _transformed_kernel(mirrored)

    def portion(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, list[list[jax.Array]]]:
        of_x = _outputs(_tiles(gradient.astype(dtype)), factors, x.shape[1:3])
        pixels, products = _tiles(x.astype(dtype)), _quarters(gradient.astype(dtype))
        transposed = [[tile.T for tile in row] for row in pixels]
        return of_x.astype(x.dtype), _multiply(transposed, products)

    of_x, of_factors = in_portions(
        portion, _CACHED_BYTES, _transformed_bytes(x, kernel), x, gradient
    )
    of_kernel = _transform(_OF_KERNELS.T, of_factors)
    return of_x, jnp.stack([jnp.stack(row) for row in of_kernel]).astype(kernel.dtype)


def tiles(x: jax.Array) -> int:
    """How many there are in images ``[N, H, W, C]``: rows of the matrices."""
    rows, columns = _tile_counts(x.shape[1:3])
    return x.shape[0] * rows * columns


def _transformed_bytes(x: jax.Array, kernel: jax.Array) -> int:
    """Of an image's tiles, or of their products, whichever are wider."""
    rows, columns = _tile_counts(x.shape[1:3])
    return 16 * rows * columns * max(kernel.shape[2:]) * 4


def _tile_counts(size: Sequence[int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)


def _transformed_kernel(kernel: jax.Array) -> _Grid:
    """4x4 of ``[I, O]``."""
    return _transform(_OF_KERNELS, [list(row) for row in kernel])


def _tiles(x: jax.Array) -> _Grid:
    """4x4 of ``[tiles, C]``: all tiles, which overlap by two pixels, transformed."""
    height, width = x.shape[1:3]
    rows, columns = _tile_counts((height, width))
    below, right = 2 * rows + 1 - height, 2 * columns + 1 - width
    padded = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))

    def place(top: int, left: int) -> jax.Array:
        pixels = padded[:, top : top + 2 * rows - 1 : 2, left : left + 2 * columns - 1 : 2]
        return pixels.reshape(-1, x.shape[-1])

    return _transform(_OF_PIXELS, [[place(top, left) for left in range(4)] for top in range(4)])


def _quarters(gradient: jax.Array) -> _Grid:
    """4x4 of ``[tiles, O]``: the gradient of the products, by that of the outputs."""
    height, width = gradient.shape[1:3]
    padded = jnp.pad(gradient, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    places = [
        [padded[:, top::2, left::2].reshape(-1, gradient.shape[-1]) for left in range(2)]
        for top in range(2)
    ]
    return _transform(_OF_PRODUCTS.T, places)


def _outputs(pixels: _Grid, factors: _Grid, size: Sequence[int]) -> jax.Array:
    """``[n, height, width, O]`` of ``size``, from the tiles' products with a kernel's factors."""
    products = _multiply(pixels, factors)
    rows, columns = _tile_counts(size)
    lines = [
        jnp.stack([output.reshape(-1, rows, columns, output.shape[-1]) for output in line], axis=3)
        for line in _transform(_OF_PRODUCTS, products)
    ]
    joined = jnp.stack(lines, axis=2)
    outputs = joined.reshape(-1, 2 * rows, 2 * columns, joined.shape[-1])
    return outputs[:, : size[0], : size[1]]


def _multiply(left: _Grid, right: _Grid) -> list[list[jax.Array]]:
    """The matrix product at each place."""
    return [
        [one @ other for one, other in zip(*rows, strict=True)]
        for rows in zip(left, right, strict=True)
    ]


def _transform(matrix: np.ndarray, grid: _Grid) -> list[list[jax.Array]]:
    """``matrix @ grid @ matrix.T``, without what is multiplied by 0."""
    columns = [_combine(matrix, column) for column in zip(*grid, strict=True)]
    return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _combine(matrix: np.ndarray, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """A weighted sum of the arrays for each row of the matrix."""

    def term(weight: float, array: jax.Array) -> jax.Array:
        return array if weight == 1 else -array if weight == -1 else weight * array

    return [
        functools.reduce(
            jnp.add,
            [term(weight, array) for weight, array in zip(row, arrays, strict=True) if weight],
        )
        for row in matrix.tolist()
    ]
