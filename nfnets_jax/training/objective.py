"""What is minimized, and what is measured beside it."""

import jax
import jax.numpy as jnp
import optax

from nfnets_jax.data.normalization import normalize as normalize


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy in nats, an example at a time.

    Args:
      logits: ``[N, K]`` float32.
      labels: ``[N]`` integers.
      smoothing: probability that the target spreads evenly over all classes (Szegedy et al. 2016,
        arXiv:1512.00567, section 7).

    Returns:
      ``[N]`` float32.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def in_top(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether the label is among the ``k`` largest logits: ``[N]`` float32 of 0 and 1.

    Equal logits rank by their position; a label whose logit is NaN is never among them.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)
    return (jnp.sum(ahead, axis=1) < k).astype(jnp.float32)
