"""The loss that training minimizes, and the accuracy that is reported beside it."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Computes the softmax cross-entropy of each example.

    Args:
      logits: ``[N, K]`` float32.
      labels: ``[N]`` integers.
      smoothing: probability that the target spreads evenly over all classes (Szegedy et al. 2016,
        arXiv:1512.00567, section 7).

    Returns:
      ``[N]`` float32, in nats.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def in_top_k(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Computes whether each label is among the ``k`` largest logits.

    Equal logits rank by class index. A label whose logit is NaN is never among the largest.

    Args:
      logits: ``[N, K]`` float32.
      labels: ``[N]`` integers.
      k: how many logits count as the largest.

    Returns:
      ``[N]`` float32, 0 or 1.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & earlier)
    return (jnp.sum(ahead, axis=1) < k).astype(jnp.float32)


def over_labels(
    metric: Callable[[jax.Array], jax.Array], batch: Mapping[str, jax.Array]
) -> jax.Array:
    """Computes a metric of labels, ``[N]``; of mixed images, its mean weighted by their shares.

    Args:
      metric: of labels ``[N]``.
      batch: ``label``, and of mixed images ``other_label`` and ``share``, the weight of ``label``.
    """
    values = metric(batch["label"])
    if "share" not in batch:
        return values
    return batch["share"] * values + (1 - batch["share"]) * metric(batch["other_label"])
