import math

import pytest
import torch

from vimoe.analysis.paired import mean_loss, mean_score


def test_a_loss_is_counted_in_points_of_the_same_images() -> None:
    before, after = torch.tensor([1.0, 1, 1, 0]), torch.tensor([1.0, 0, 0, 1])
    assert mean_loss(before, after).value == 25
    assert mean_loss(after, before).value == -25
    assert mean_loss(before, before).value == 0


def test_the_interval_is_agrestis_and_mins() -> None:
    """Their equation: (c - b) / (n + 2) and its Wald error with half an observation added to each of four cells."""
    n, lost, gained = 100, 12, 4
    before = torch.cat([torch.ones(lost), torch.zeros(gained), torch.ones(n - lost - gained)])
    after = torch.cat([torch.zeros(lost), torch.ones(gained), torch.ones(n - lost - gained)])
    b, c, size = lost + 0.5, gained + 0.5, n + 2
    centre = (b - c) / size
    error = 1.959964 * math.sqrt((b + c) - (b - c) ** 2 / size) / size
    found = mean_loss(before, after)
    assert found.low == pytest.approx(100 * (centre - error))
    assert found.high == pytest.approx(100 * (centre + error))


def test_few_images_that_change_sides_are_not_taken_for_proof() -> None:
    before = torch.ones(300)
    for wrong, beyond_noise in ((0, False), (4, False), (6, True)):  # McNemar's exact p: 1, 0.125, 0.031
        after = (torch.arange(300) >= wrong).float()
        assert (mean_loss(before, after).low > 0) == beyond_noise


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        drawn = torch.rand(150, generator=generator)
        before, after = (drawn > 0.05).float(), (drawn > 0.09).float()
        found = mean_loss(before, after)
        inside += found.low <= 4 <= found.high
    assert 0.92 <= inside / 400 <= 0.995


def test_a_perfect_score_does_not_come_without_doubt() -> None:
    found = mean_score(torch.ones(50))
    assert (found.value, found.high) == (100, 100)
    assert 90 < found.low < 97
    assert mean_score(torch.zeros(50)).low == 0


def test_the_interval_of_scores_between_is_as_narrow_as_they_are_alike() -> None:
    """Sixty masks that are nearly right leave no doubt of ten points."""
    scores = 0.97 + 0.01 * torch.sin(torch.arange(60.0, dtype=torch.float64))
    found, mean = mean_score(scores), float(scores.mean())
    error = float(scores.std()) / math.sqrt(60) * 2.000995  # Student's t at 59 degrees of freedom
    assert found.low == pytest.approx(100 * (mean - error))
    assert found.high == pytest.approx(100 * (mean + error))
    one = mean_score(torch.tensor([0.5]))
    assert (one.low, one.high) == (0, 100)


def test_scores_between_count_as_what_they_are() -> None:
    assert mean_score(torch.tensor([0.25, 0.75, 0.5])).value == pytest.approx(50)
    assert mean_loss(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.5])).value == pytest.approx(12.5)


@pytest.mark.parametrize("score", [0.5, 1.0])
def test_scores_between_0_and_1_that_do_not_move_leave_the_same_doubt(score: float) -> None:
    scores = torch.tensor([1.0, 1, score, 1, 1])
    found = mean_loss(scores, scores)
    assert (found.value, found.low, found.high) == (0, pytest.approx(-28, abs=0.01), pytest.approx(28, abs=0.01))
