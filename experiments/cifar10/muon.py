"""Muon: momentum whose singular values are all about one (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon has the method and the polynomial. The products differ
from optax's: the powers of a kernel are those of its Gram matrix, which is as small as the kernel
has outputs. Five steps for 3x3 kernels of 256 channels to 256 take as many products of matrices as
two of optax's.
"""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from nfnets_jax.errors import InputError

# It maps singular values between 0 and 1 to between 0.7 and 1.2, and moves small ones nearly 3.4
# times as far from 0 each time.
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_STEPS = 5
# All parameters but kernels are updated by Adam, with this share of the learning rate and this
# decay of squares.
_ADAM_SHARE, _ADAM_DECAY = 0.2, 0.99


def create_muon(
    settings: ml_collections.ConfigDict, rate: optax.Schedule
) -> optax.GradientTransformation:
    """Returns Muon for the kernels of convolutions, which keep their norms, and Adam for the rest.

    Args:
      settings: ``config.optimizer``: ``momentum`` and ``nesterov``, no weight decay or clipping.
      rate: the learning rate.

    Raises:
      InputError: there is weight decay or clipping.
    """
    for name in ("weight_decay", "clipping"):
        if settings[name]:
            raise InputError(f"optimizer.{name} is {settings[name]}; muon takes 0")
    muon = optax.chain(
        scale_by_muon(settings.momentum, settings.nesterov),
        optax.scale_by_learning_rate(rate),
    )
    adam = optax.adam(
        lambda step: _ADAM_SHARE * rate(step), b2=_ADAM_DECAY, nesterov=settings.nesterov
    )
    return optax.chain(
        optax.partition(
            {"kernel": muon, "other": adam},
            lambda params: jax.tree.map(
                lambda param: "kernel" if _is_convolution(param) else "other", params
            ),
        ),
        optax.stateless(_keep_norms),
    )


def scale_by_muon(momentum: float, nesterov: bool = True) -> optax.GradientTransformation:
    """Replaces the gradients of kernels by their orthogonalized momentum.

    Args:
      momentum: decay of the accumulated gradient, a step.
      nesterov: whether the step looks ahead by one more momentum.

    Returns:
      A transformation of kernels ``[h, w, I, O]``, or equal layers' ``[layers, h, w, I, O]``.
    """
    return optax.chain(
        optax.trace(momentum, nesterov),
        optax.stateless_with_tree_map(lambda update, _: _orthogonalize_layers(update)),
    )


def _orthogonalize_layers(kernels: jax.Array) -> jax.Array:
    return orthogonalize(kernels) if kernels.ndim == 4 else jax.vmap(orthogonalize)(kernels)


def orthogonalize(kernel: jax.Array) -> jax.Array:
    """Returns a kernel ``[..., I, O]`` with singular values of about one, as a matrix to ``O``.

    Singular values below a thousandth of the largest may stay smaller.
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


def _keep_norms(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    """Changes the updates of kernels so that their norms stay."""

    def on_sphere(update: jax.Array, param: jax.Array) -> jax.Array:
        if not _is_convolution(param):
            return update
        moved = param + update
        return moved * (_kernel_norm(param) / _kernel_norm(moved)) - param

    return jax.tree.map(on_sphere, updates, params)


def _is_convolution(param: jax.Array) -> bool:
    """Returns whether it is ``[h, w, I, O]``, or equal layers' ``[layers, h, w, I, O]``."""
    return param.ndim >= 4


def _kernel_norm(kernel: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(-4, -3, -2, -1), keepdims=True))
