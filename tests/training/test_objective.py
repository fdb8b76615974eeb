import jax.numpy as jnp
import numpy as np
import pytest

from nfnets_jax.training import objective


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_by_hand(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(1 - smoothing) * log_p[np.arange(6), labels] - smoothing * log_p.mean(1)
    actual = objective.cross_entropy(jnp.float32(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_in_top_ranks_as_a_stable_sort_does() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 4, (200, 8)).astype(np.float32), rng.integers(0, 8, 200)
    order = np.argsort(-logits, axis=1, kind="stable")
    for k in (1, 5):
        expected = (order[:, :k] == labels[:, None]).any(1)
        np.testing.assert_array_equal(
            objective.in_top_k(jnp.asarray(logits), jnp.asarray(labels), k), expected
        )


def test_nan_is_never_right() -> None:
    assert objective.in_top_k(jnp.full((1, 10), jnp.nan), jnp.zeros(1, int), 5) == 0
