"""Adaptive Gradient Clipping in Haiku: a small network learns handwritten digits in seconds.

Run it with ``python examples/agc_haiku.py``.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from nfnets_jax import optax_agc

digits = load_digits()
images, labels = jnp.asarray(digits.data / 16), jnp.asarray(digits.target)


def forward(x: jax.Array) -> jax.Array:
    """Maps ``[N, 64]`` pixels to ``[N, 10]`` logits."""
    return hk.Linear(10, name="logits")(hk.nets.MLP([64, 64], activate_final=True)(x))


network: hk.Transformed = hk.without_apply_rng(hk.transform(forward))


def loss_fn(params: hk.Params) -> jax.Array:
    """Returns the mean cross-entropy of all images."""
    logits = network.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


mask = optax_agc.all_but_classifier
agc = optax_agc.adaptive_grad_clip(0.01, unit_axes=optax_agc.haiku, mask=mask)
optimizer = optax.chain(agc, optax.adamw(3e-3))


@jax.jit
def step(params: hk.Params, state: optax.OptState) -> tuple[hk.Params, optax.OptState]:
    """Takes one step of the optimizer."""
    updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
    return optax.apply_updates(params, updates), state


params = network.init(jax.random.key(0), images)
state = optimizer.init(params)
print(f"loss before: {loss_fn(params):.3f}")
for _ in range(100):
    params, state = step(params, state)
print(f"loss after:  {loss_fn(params):.3f}")
