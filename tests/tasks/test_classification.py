import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vimoe.tasks.classification import Classification, evaluating


def test_the_loss_is_cross_entropy_with_smoothing() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(Classification(3, 0.1).loss(logits, labels), expected)


def test_figures_over_uneven_batches_are_those_of_all_images_together() -> None:
    torch.manual_seed(0)
    model, images, labels = nn.Linear(5, 3), torch.randn(7, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    parts = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    metrics = Classification(3).measure(model, parts, "cpu").summary()
    logits = model(images)
    assert metrics["top1"] == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())
    assert metrics["nll"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert metrics["images"] == 7


def test_evaluation_gives_the_mode_back_even_after_an_error() -> None:
    model = nn.Dropout().train()

    def fail() -> None:
        with evaluating(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise RuntimeError("broken image")

    with pytest.raises(RuntimeError, match="broken image"):
        fail()
    assert model.training
    assert torch.is_grad_enabled()
