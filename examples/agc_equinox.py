"""Adaptive Gradient Clipping in Equinox: a small network learns handwritten digits in seconds.

Run it with ``python examples/agc_equinox.py``.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from nfnets_jax import optax_agc

digits = load_digits()
images, labels = jnp.asarray(digits.data / 16), jnp.asarray(digits.target)


def loss_fn(model: eqx.nn.MLP) -> jax.Array:
    """Returns the mean cross-entropy of all images."""
    logits = jax.vmap(model)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


mask = optax_agc.all_but("layers/1/weight")  # The classifier.
agc = optax_agc.adaptive_grad_clip(0.01, unit_axes=optax_agc.equinox, mask=mask)
optimizer = optax.chain(agc, optax.adamw(3e-3))


@eqx.filter_jit
def step(model: eqx.nn.MLP, state: optax.OptState) -> tuple[eqx.nn.MLP, optax.OptState]:
    """Takes one step of the optimizer."""
    grads = eqx.filter_grad(loss_fn)(model)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state


model = eqx.nn.MLP(in_size=64, out_size=10, width_size=64, depth=1, key=jax.random.key(0))
state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
print(f"loss before: {loss_fn(model):.3f}")
for _ in range(100):
    model, state = step(model, state)
print(f"loss after:  {loss_fn(model):.3f}")
