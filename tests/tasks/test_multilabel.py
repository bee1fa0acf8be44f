import pytest
import torch
from torch import nn

from vimoe.tasks.multilabel import Multilabel


def test_the_loss_is_the_mean_of_each_label_by_itself_drawn_to_the_middle_by_smoothing() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    for smoothing in (0.0, 0.2):
        wanted = torch.where(targets > 0, 1 - smoothing / 2, smoothing / 2)
        p = logits.sigmoid()
        expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean().item()
        assert Multilabel(4, smoothing).loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_pulls_each_label_to_its_own_target() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    Multilabel(2).loss(logits, torch.tensor([[1, 0], [0, 1]])).backward()
    assert torch.equal(logits.grad, torch.tensor([[-1, 1], [1, -1]]) / 8)  # (p - y) / 4


def test_measuring_over_uneven_batches_is_that_of_all_images_together() -> None:
    torch.manual_seed(0)
    model, images, targets = nn.Linear(5, 3), torch.randn(7, 5), torch.tensor([[1, 0, 1], [0, 1, 0]] * 4)[:7]
    seen: list[int] = []
    parts = [(images[:5], targets[:5]), (images[5:], targets[5:])]
    apart = Multilabel(3).measure(model, parts, "cpu", lambda logits, _: seen.append(len(logits))).summary()
    together = Multilabel(3).measure(model, [(images, targets)], "cpu").summary()
    assert apart == pytest.approx(together)
    assert seen == [5, 2]
