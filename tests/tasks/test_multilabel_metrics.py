import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, label_ranking_average_precision_score
from torch.nn import functional as F

from vimoe.errors import UserError
from vimoe.tasks.multilabel_metrics import MultilabelMetrics, average_precision, label_ranking


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_average_precision_is_sklearns_also_where_scores_are_equal(images: int, levels: int, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    scores, right = drawn.integers(0, levels, (2, images)) / 7.0, drawn.integers(0, 2, (2, images))
    right[:, 0] = 1  # sklearn warns of none
    found = average_precision(torch.tensor(scores), torch.tensor(right))
    expected = [average_precision_score(*row) for row in zip(right, scores, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    ranking = label_ranking(torch.tensor(scores), torch.tensor(right))
    assert ranking.mean().item() == pytest.approx(label_ranking_average_precision_score(right, scores), abs=1e-6)


def test_an_image_without_labels_has_nothing_to_rank() -> None:
    assert label_ranking(torch.randn(2, 3), torch.tensor([[0, 0, 0], [1, 1, 1]])).tolist() == [1, 1]
    assert average_precision(torch.randn(1, 3), torch.zeros(1, 3, dtype=torch.int64)).isnan().all()


def test_metrics_over_batches_are_sklearns_of_all_images_and_labels_that_do_not_occur_count_nowhere() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(41, 5), (torch.rand(41, 5) < 0.4).long()
    targets[:, 2] = 0
    metrics = MultilabelMetrics(5)
    metrics.add(logits[:30], targets[:30])
    padded = torch.cat([logits[30:], torch.randn(1, 5)]), torch.cat([targets[30:], torch.full((1, 5), -1)])
    metrics.add(*padded)  # what a process gets so that all take as many steps
    metrics.gather()
    there = [0, 1, 3, 4]
    y, s, given = targets[:, there].numpy(), logits[:, there].numpy(), (logits > 0)[:, there].numpy()
    found = metrics.summary()
    assert found["map"] == pytest.approx(100 * average_precision_score(y, s, average="macro"))
    assert found["f1"] == pytest.approx(100 * f1_score(y, given, average="macro"))
    whole = f1_score(targets.numpy(), (logits > 0).numpy(), average="micro")
    assert found["micro_f1"] == pytest.approx(100 * whole)
    assert found["bce"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets.float()).item())
    assert found["images"] == 41
    assert metrics.per_class()[2] == (0, 0, 0, 0, 0)
    assert len(metrics.per_class()[0]) == len(metrics.columns)


def test_no_image_at_all_and_outputs_that_are_no_numbers() -> None:
    metrics = MultilabelMetrics(2)
    metrics.gather()
    assert (metrics.summary()["images"], metrics.summary()["map"]) == (0, 0)
    with pytest.raises(UserError, match="not finite"):
        metrics.add(torch.tensor([[float("nan"), 0.0]]), torch.tensor([[0, 1]]))
