"""A network as a backbone: a small head on its stages finds where the ink of a digit is.

Run it with ``python examples/backbone.py``. The backbone is a frozen ``nfnet_micro`` with random
parameters, so that nothing is downloaded. The head predicts, for each cell of the finest stage, how
dark the image is there.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import nfnets_jax

STEPS, LEARNING_RATE, IMAGES = 200, 3e-3, 256

pixels = jnp.asarray(load_digits().images[:IMAGES, :, :, None] / 16, jnp.float32)
images = (pixels - 0.305) / 0.376

backbone = nfnets_jax.create_model("nfnet_micro", num_classes=0, features=True)
params, state = backbone.init(jax.random.key(0), images[:1])
outputs, _ = jax.jit(lambda images: backbone.apply(params, state, None, images, False))(images)
stages = [outputs[name] for name in sorted(outputs) if name.startswith("stage_")]
for number, stage in enumerate(stages, start=1):
    print(f"stage_{number}: {stage.shape}")

# The head sees every stage, resized to the finest one.
_, height, width, _ = stages[0].shape
features = jnp.concatenate(
    [jax.image.resize(x, (IMAGES, height, width, x.shape[-1]), "nearest") for x in stages], -1
)
target = jax.image.resize(pixels, (IMAGES, height, width, 1), "linear")


Head = dict[str, jax.Array]


def loss_fn(head: Head) -> jax.Array:
    """Returns the mean squared error of the head's map."""
    return jnp.mean((jax.nn.relu(features) @ head["w"] + head["b"] - target) ** 2)


optimizer = optax.adam(LEARNING_RATE)
head = {"w": jnp.zeros((features.shape[-1], 1)), "b": jnp.zeros(1)}
opt_state = optimizer.init(head)


@jax.jit
def step(head: Head, opt_state: optax.OptState) -> tuple[Head, optax.OptState]:
    """Takes one step of the optimizer; only the head learns."""
    updates, opt_state = optimizer.update(jax.grad(loss_fn)(head), opt_state)
    return optax.apply_updates(head, updates), opt_state


print(f"loss before: {loss_fn(head):.4f}")
for _ in range(STEPS):
    head, opt_state = step(head, opt_state)
print(f"loss after:  {loss_fn(head):.4f}")
