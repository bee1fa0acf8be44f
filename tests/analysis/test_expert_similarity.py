import numpy as np
import pytest
import torch

import vimoe
from tests.vit.families import make
from vimoe.analysis.expert_similarity import classes_of_expert, output_gram, output_similarity
from vimoe.moe.experts import Experts
from vimoe.vit.blocks import moe_layers


def experts_of(name: str = "vit_tiny_patch16_224", number: int = 4) -> Experts:
    return moe_layers(vimoe.upcycle(make(name), last=1, num_experts=number))[2].experts


@torch.no_grad()
def perturb(experts: Experts, keep: tuple[int, ...] = ()) -> None:
    for parameter in experts.parameters():
        noise = 0.1 * torch.randn_like(parameter)
        noise[list(keep)] = 0
        parameter += noise


def test_classes_come_by_frequency_with_their_lift() -> None:
    counts = np.array([[10, 0], [30, 10], [0, 50]])
    first, second = classes_of_expert(counts, 0)
    assert (first.label, first.share, first.lift) == (1, 0.75, pytest.approx(0.75 / 0.4))
    assert (second.label, second.lift) == (0, pytest.approx(0.25 / 0.1))
    assert [c.label for c in classes_of_expert(counts, 1, most=1)] == [2]
    assert classes_of_expert(np.array([[3, 0], [4, 0]]), 1) == ()


def test_twins_are_found_by_their_answers() -> None:
    experts = experts_of()
    perturb(experts, keep=(1, 3))
    rows = torch.randn(50, 32)
    alike = output_similarity(output_gram(experts, rows))
    assert alike[1, 3] == pytest.approx(1)
    assert alike[0, 2] < 0.99


def test_output_similarity_adds_up_over_batches_and_minds_the_size_of_answers() -> None:
    experts = experts_of()
    perturb(experts)
    rows = torch.randn(40, 32)
    whole, parts = output_gram(experts, rows), output_gram(experts, rows[:15]) + output_gram(experts, rows[15:])
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    answers = torch.stack([experts.to_ffn(torch.eye(4)[e])(rows) for e in range(4)]).detach().double()
    sizes = answers.square().sum((1, 2))
    for a in range(4):
        for b in range(4):
            expected = 1 - (answers[a] - answers[b]).square().sum() / (sizes[a] + sizes[b])
            assert output_similarity(whole)[a, b] == pytest.approx(float(expected), abs=1e-5)
    assert output_similarity(torch.tensor([[1.0, 3.0], [3.0, 9.0]]))[0, 1] == pytest.approx(0.6)  # three times as loud


def test_experts_that_answer_nothing_are_the_same() -> None:
    assert torch.equal(output_similarity(torch.zeros(2, 2)), torch.ones(2, 2))
