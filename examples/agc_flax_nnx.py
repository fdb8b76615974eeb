"""Adaptive Gradient Clipping in Flax NNX: a small network learns handwritten digits in seconds.

Run it with ``python examples/agc_flax_nnx.py``.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from nfnets_jax import optax_agc

digits = load_digits()
images, labels = jnp.asarray(digits.data / 16), jnp.asarray(digits.target)


class Network(nnx.Module):
    """Maps ``[N, 64]`` pixels to ``[N, 10]`` logits."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.logits = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the two layers."""
        return self.logits(nnx.relu(self.hidden(x)))


def loss_fn(model: Network) -> jax.Array:
    """Returns the mean cross-entropy of all images."""
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer) -> None:
    """Takes one step of the optimizer."""
    optimizer.update(model, nnx.grad(loss_fn)(model))


mask = optax_agc.all_but_classifier
agc = optax_agc.adaptive_grad_clip(0.01, unit_axes=optax_agc.flax, mask=mask)
model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.chain(agc, optax.adamw(3e-3)), wrt=nnx.Param)
print(f"loss before: {loss_fn(model):.3f}")
for _ in range(100):
    step(model, optimizer)
print(f"loss after:  {loss_fn(model):.3f}")
