"""Sharpness-aware minimization: gradients from the worst place nearby (arXiv:2010.01412).

The parameters first go up the gradient by a distance ``rho``; the gradient there is then applied to
the parameters as they were. NFNet-F6 was trained so (NFNets, section 6.1), with the way up taken by
a fifth of the batch, which makes a step a fifth longer instead of twice as long.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import optax

from nfnets_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SAM:
    """How sharpness-aware minimization is done.

    Attributes:
      rho: distance in the space of parameters; 0 for plain gradients.
      fraction: of the batch that decides the way up.
    """

    rho: float = 0.0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise InputError(f"optimizer.sam_rho is {self.rho}; it takes a number from 0 on")
        if not 0 < self.fraction <= 1:
            raise InputError(f"optimizer.sam_fraction is {self.fraction}; it takes 0 to 1, not 0")

    def examples(self, of: int, multiple: int = 0) -> int:
        """How many of a device's examples decide the way up: whole micro-batches, at least one."""
        multiple = multiple or 1
        return max(1, round(of * self.fraction / multiple)) * multiple


def ascend(params: chex.ArrayTree, grads: chex.ArrayTree, rho: float) -> chex.ArrayTree:
    """Parameters at a distance ``rho`` up the gradient; where it is zero, the same."""
    norm = optax.tree.norm(grads)
    scale = jnp.where(norm > 0, rho / norm, 0.0)
    return jax.tree.map(lambda param, grad: param + scale * grad, params, grads)
