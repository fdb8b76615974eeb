"""An image's logits and gradient next to those of the same image in another batch.

They are equal in normalizer-free networks. Batch normalization, and normalization by running
statistics whose gradients subtract the batch's, tie the images of a batch together.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from nfnets_jax.models.efficientnet import Stage

SMALL: dict[str, Any] = {"width": (32, 64), "depth": (1, 1), "strides": (1, 2)}
FREE: dict[str, dict[str, Any]] = {
    "nfnet_micro": SMALL,
    "nf_resnet26_small": SMALL,
    "nf_seresnext26d_small": SMALL,
    "nf_regnet_b0": {**SMALL, "stem": ((16, 2),)},
    "skipinit_resnet26_small": {"depth": (1, 1, 1, 1), "width": (16, 32, 64, 128)},
    "fixup_resnet26_small": {"depth": (1, 1, 1, 1), "width": (16, 32, 64, 128)},
}
TIED: dict[str, dict[str, Any]] = {
    "resnet26_small": {"depth": (1, 1, 1, 1), "width": (16, 32, 64, 128)},
    "efficientnet_b0_small": {"stages": (Stage(1, 3, 1, 16, 1), Stage(6, 3, 2, 24, 1))},
}


def differences(name: str, overrides: dict[str, Any]) -> tuple[float, float]:
    """Returns how much an image's logits and the gradient of its loss change with its batch-mates.

    Both are norms of differences between two batches of four, which share the image alone, over
    the norms of what differs.
    """
    model = nfnets_jax.create_model(name, 10, **overrides)
    images = jax.random.normal(jax.random.key(0), (7, 32, 32, 3))
    params, state = model.init(jax.random.key(1), images)
    # Branches and classifiers that start at zero would hide what depends on the batch.
    params = jax.tree.map(
        lambda param: param + 0.1 * jax.random.normal(jax.random.key(2), param.shape), params
    )

    @jax.jit
    def first_image(batch: jax.Array) -> tuple[jax.Array, Any]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = model.apply(params, state, None, batch, True)[0]["logits"]
            return jax.nn.log_softmax(logits)[0, 3], logits[0]

        grads, logits = jax.grad(loss, has_aux=True)(params)
        return logits, grads

    logits, grads = first_image(images[:4])
    other_logits, other_grads = first_image(jnp.concatenate([images[:1], images[4:]]))

    def norm(tree: Any) -> float:
        return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))

    apart = jax.tree.map(jnp.subtract, (logits, grads), (other_logits, other_grads))
    return norm(apart[0]) / norm(logits), norm(apart[1]) / norm(grads)


@pytest.mark.parametrize("name", FREE)
def test_normalizer_free_networks_treat_images_by_themselves(name: str) -> None:
    logits, gradient = differences(name, FREE[name])
    assert logits < 1e-5
    assert gradient < 1e-4


def test_running_statistics_tie_the_gradients_of_a_batch_alone() -> None:
    """The CIFAR-10 record's network is not normalizer-free."""
    logits, gradient = differences("nf_convnet", {"width": (16, 16)})
    assert logits < 1e-5
    assert gradient > 0.02


@pytest.mark.parametrize("name", TIED)
def test_batch_normalization_ties_the_images_of_a_batch(name: str) -> None:
    logits, gradient = differences(name, TIED[name])
    assert logits > 0.05
    assert gradient > 0.05
