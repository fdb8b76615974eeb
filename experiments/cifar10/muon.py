"""Muon: momentum whose singular values are all about one (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon has the method and the polynomial. It is optax's but for
where the products are made: its powers of a kernel are those of the kernel's Gram matrix, which is
as small as the kernel has outputs.
"""

import jax
import jax.numpy as jnp
import optax

# Takes singular values between 0 and 1 to between 0.7 and 1.2, small ones nearly 3.4 times as far
# from 0 each time.
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def scale_by_muon(momentum: float, nesterov: bool = True) -> optax.GradientTransformation:
    """Kernels' gradients ``[h, w, I, O]`` made into orthogonalized momentum.

    Those of equal layers may be one array, with a leading axis that counts them. ``momentum`` is
    the share that is left after a step. Five steps of it for 3x3 kernels of 256 channels to 256 are
    as many products of matrices as optax's make in two.
    """
    return optax.chain(
        optax.trace(momentum, nesterov),
        optax.stateless_with_tree_map(lambda update, _: _of_each_layer(update)),
    )


def _of_each_layer(kernels: jax.Array) -> jax.Array:
    return orthogonalize(kernels) if kernels.ndim == 4 else jax.vmap(orthogonalize)(kernels)


def orthogonalize(kernel: jax.Array) -> jax.Array:
    """A kernel ``[..., I, O]`` with singular values of about one, as a matrix to its outputs.

    Those below a thousandth of the largest may stay smaller.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    if matrix.shape[0] < matrix.shape[1]:
        return orthogonalize(matrix.T).T.reshape(kernel.shape)
    matrix /= jnp.linalg.norm(matrix) + jnp.finfo(matrix.dtype).tiny
    a, b, c = _POLYNOMIAL
    one = jnp.eye(matrix.shape[1], dtype=matrix.dtype)
    gram, factor = matrix.T @ matrix, one
    for _ in range(_STEPS):
        step = a * one + b * gram + c * gram @ gram
        gram, factor = step @ gram @ step, factor @ step
    return (matrix @ factor).reshape(kernel.shape)
