import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)

from nfnets_jax.serving.metrics import Accuracy


def test_figures_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((500, 10)), rng.integers(9, size=500)
    logits[np.arange(500), labels] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    accuracy = Accuracy(10)
    for part in np.split(np.arange(500), [100, 101, 350]):
        accuracy.add(probabilities[part], labels[part])
    summary, predictions = accuracy.summary(), probabilities.argmax(axis=1)
    assert summary["examples"] == accuracy.examples == 500
    assert summary["top1"] == pytest.approx(accuracy_score(labels, predictions))
    top5 = top_k_accuracy_score(labels, probabilities, k=5, labels=range(10))
    assert summary["top5"] == pytest.approx(top5)
    recalls = recall_score(labels, predictions, labels=range(9), average=None)
    assert [accuracy.per_class()[label][0] for label in range(9)] == pytest.approx(recalls)
    assert set(accuracy.per_class()) == set(range(9))
    expected = confusion_matrix(labels, predictions, labels=range(10))
    np.testing.assert_array_equal(accuracy.confusion, expected)

    confidence, error = probabilities.max(axis=1), 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            accuracy = np.mean(predictions[inside] == labels[inside])
            error += inside.mean() * abs(accuracy - confidence[inside].mean())
    assert summary["ece"] == pytest.approx(error)


def test_calibration_of_who_is_sure_and_half_right() -> None:
    accuracy = Accuracy(2)
    accuracy.add(np.array([[1.0, 0.0]] * 4), np.array([0, 0, 1, 1]))
    assert accuracy.summary() == {"examples": 4, "top1": 0.5, "top5": 1.0, "ece": 0.5}
    assert accuracy.per_class() == {0: (1.0, 2), 1: (0.0, 2)}
