"""Soft MoE against the einsum form of its paper, with the experts computed in every way."""

import pytest
import torch
from torch.nn import functional as F

from .support import BACKENDS, KINDS, D, E, assert_same, layer_results, make_ffn, randomize, upcycled

SLOTS = 3


def soft_layer(kind: str = "mlp", backend: str = "reference", **settings):
    torch.manual_seed(0)
    layer = upcycled(make_ffn(kind), backend=backend, router="soft", routing="token", slots=SLOTS, **settings)
    randomize(layer)
    return layer


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_einsum_form_of_the_paper(kind):
    layer = soft_layer(kind, init="residual").double()
    x = torch.randn(2, 7, D, dtype=torch.float64)
    slots = layer.router.scale * F.normalize(layer.router.weight, dim=-1).view(E, SLOTS, D)
    logits = torch.einsum("btd,epd->btep", F.normalize(x, dim=-1), slots)
    dispatch, combine = logits.softmax(1), logits.flatten(2).softmax(2).view_as(logits)
    given = torch.einsum("btd,btep->bepd", x, dispatch)
    experts = [layer.experts.to_ffn(F.one_hot(torch.tensor(e), E).double()) for e in range(E)]
    answers = torch.stack([expert(given[:, e]) for e, expert in enumerate(experts)], 1)
    wanted = torch.einsum("bepd,btep->btd", answers, combine) + layer.shared_expert(x)
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_all_backends_agree_in_value_and_gradient(backend):
    x = torch.randn(2, 7, D)
    wanted = layer_results(soft_layer(), x)
    assert_same(layer_results(soft_layer(backend=backend), x), wanted, tolerance=1e-4)


def test_kept_experts_keep_their_slots():
    layer = soft_layer()
    before = layer.router.weight.detach().view(E, SLOTS, D)
    layer.router.keep([2, 0])
    assert torch.equal(layer.router.weight.detach().view(2, SLOTS, D), before[[2, 0]])
    assert layer.router.weight.requires_grad


def test_a_layer_that_chooses_nothing_has_no_selection():
    layer = soft_layer()
    layer(torch.randn(2, 7, D))
    assert layer.last_selection is None


def test_no_parameter_is_a_scalar_which_fsdp2_could_not_shard():
    assert all(parameter.ndim for parameter in soft_layer().parameters())
