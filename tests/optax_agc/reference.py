"""A plain reference of the paper's formula: float64, one unit after the other."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax


def clip(
    grad: np.ndarray, weight: np.ndarray, axes: Sequence[int], clipping: float, eps: float
) -> np.ndarray:
    """Clips a gradient whose units ``axes`` run inside; units that are not finite stay."""
    wide = np.complex128 if np.iscomplexobj(grad) else np.float64
    clipped, weight = np.array(grad, wide), np.asarray(weight, wide)
    outer = [1 if axis in axes else length for axis, length in enumerate(grad.shape)]
    for index in np.ndindex(*outer):
        unit = tuple(slice(None) if axis in axes else place for axis, place in enumerate(index))
        norm = np.sqrt((np.abs(clipped[unit]) ** 2).sum())
        bound = clipping * max(np.sqrt((np.abs(weight[unit]) ** 2).sum()), eps)
        if norm > bound and np.isfinite(norm):
            clipped[unit] *= bound / norm
    return clipped


def update(
    transformation: optax.GradientTransformation, grads: optax.Updates, params: optax.Params
) -> optax.Updates:
    """Runs a first update, compiled as one program."""
    return jax.jit(lambda g, p: transformation.update(g, transformation.init(p), p)[0])(
        grads, params
    )


def random(seed: int, shape: Sequence[int], scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)
