"""Fine-tuning in plain JAX: learns the digits 0 to 4, then 5 to 9 from 50 images of them.

Run it with ``python examples/finetune.py``. To start from published parameters, use
``nfnets_jax.load_pretrained("nfnet_f0", num_classes=5)``.
"""

import haiku as hk
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import nfnets_jax
from nfnets_jax import optax_agc

digits = load_digits()
images = ((digits.images[..., None] / 16 - 0.305) / 0.376).astype(np.float32)  # [1797, 8, 8, 1]
labels = digits.target % 5  # Five classes for 0 to 4, and the same five for 5 to 9.
low, high = np.flatnonzero(digits.target < 5), np.flatnonzero(digits.target >= 5)

model = nfnets_jax.create_model("nfnet_micro", num_classes=5)
initial, model_state = model.init(jax.random.key(0), images[:1])
optimizer = optax_agc.sgd_agc(learning_rate=0.05)


def loss_fn(params: hk.Params, key: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of a batch."""
    outputs, _ = model.apply(params, model_state, key, images, is_training=True)
    return optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], labels).mean()


@jax.jit
def step(params, state, key, images, labels):  # type: ignore[no-untyped-def]
    """Takes one step of the optimizer."""
    updates, state = optimizer.update(jax.grad(loss_fn)(params, key, images, labels), state, params)
    return optax.apply_updates(params, updates), state


def fit(params: hk.Params, examples: np.ndarray, steps: int) -> hk.Params:
    """Returns the parameters after training on the images at these indices."""
    state, generator = optimizer.init(params), np.random.default_rng(0)
    for i in range(steps):
        batch = generator.choice(examples, 50, replace=False)
        params, state = step(params, state, jax.random.key(i), images[batch], labels[batch])
    return params


trained = fit(initial, low, steps=40)
model, pretrained = model.reset_classifier(trained, 5, jax.random.key(1))  # The classes are new.
tuned = fit(pretrained, high[:50], steps=20)
apply = jax.jit(model.apply, static_argnames="is_training")
outputs, _ = apply(tuned, model_state, None, images[high[50:]], is_training=False)
accuracy = np.mean(outputs["logits"].argmax(-1) == labels[high[50:]])
print(f"accuracy on the {len(high) - 50} other images of 5 to 9: {accuracy:.1%}")
