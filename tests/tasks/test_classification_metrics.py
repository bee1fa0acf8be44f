import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score

from vimoe.tasks.classification_metrics import ClassificationMetrics


def test_figures_agree_with_scikit_learn_however_the_images_are_batched() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 7), torch.randint(0, 7, (200,))
    metrics = ClassificationMetrics(7)
    for part in torch.arange(200).split(33):
        metrics.add(logits[part], labels[part])
    probs, found = logits.double().softmax(-1).numpy(), metrics.summary()
    assert found["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, probs, k=1))
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, probs, k=5))
    assert found["mean_class"] == pytest.approx(100 * balanced_accuracy_score(labels, probs.argmax(1)))
    assert found["nll"] == pytest.approx(log_loss(labels, probs), rel=1e-5)
    assert found["images"] == 200


def test_calibration_is_the_weighted_gap_of_confidence_and_accuracy() -> None:
    # Two images at confidence 0.9, one of them right, and two at 0.6, both right:
    # |0.5 - 0.9| * 2/4 + |1 - 0.6| * 2/4 = 0.4
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    metrics = ClassificationMetrics(2)
    metrics.add(probs.log(), torch.tensor([0, 1, 0, 0]))
    assert metrics.summary()["ece"] == pytest.approx(40, abs=1e-4)


def test_a_class_without_images_does_not_count_in_the_mean_of_classes() -> None:
    metrics = ClassificationMetrics(3)
    metrics.add(torch.tensor([[2.0, 1, 0], [2, 1, 0]]), torch.tensor([0, 1]))
    assert metrics.summary()["mean_class"] == 50
    assert metrics.per_class() == [(1, 100.0), (1, 0.0), (0, 0.0)]


def test_nothing_counted_is_all_zero() -> None:
    assert set(ClassificationMetrics(3).summary().values()) == {0}
