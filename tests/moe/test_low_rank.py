"""Low-rank experts against the same experts with whole maps."""

import copy

import pytest
import torch

from vimoe.moe.low_rank import LowRank

from .support import BACKENDS, KINDS, D, E, assert_same, layer_results, make_ffn, upcycled

RANK = 8


def low_rank_layer(kind: str = "mlp", norm: bool = False, **settings):
    torch.manual_seed(0)
    ffn = make_ffn(kind, norm=norm)
    layer = upcycled(ffn, expert_rank=RANK, init="residual", **settings)
    for module in layer.experts.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, std=0.3)
    torch.nn.init.normal_(layer.router.weight)
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("routing", ["image", "token"])
def test_they_start_as_the_ffn_whatever_the_gates(kind, routing):
    ffn, x = make_ffn(kind), torch.randn(3, 5, D)
    wanted = ffn(x)
    layer = upcycled(ffn, expert_rank=RANK, init="residual", gate="softmax", routing=routing, top_k=2)
    assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "inner norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_equal_the_materialised_experts_in_value_and_in_every_gradient(kind, norm):
    layer = low_rank_layer(kind, norm, backend="reference", top_k=2).double()
    whole = copy.deepcopy(layer)
    whole.experts = whole.experts.materialised()
    assert not any(isinstance(module, LowRank) for module in whole.modules())
    x = torch.randn(3, 4, D, dtype=torch.float64)
    found, wanted = layer_results(layer, x), layer_results(whole, x)
    for name in ("output", "gradient of x", "gradient of router.weight"):
        torch.testing.assert_close(found[name], wanted[name])
    # The gradient of U D is that of the whole matrix through its factors; the shared base gets all experts' gradients.
    for path, module in layer.experts.named_children():
        if not isinstance(module, LowRank):
            continue
        whole_gradient = wanted[f"gradient of experts.{path}.weight"]
        torch.testing.assert_close(module.up.grad, whole_gradient @ module.down.detach().transpose(1, 2))
        torch.testing.assert_close(module.down.grad, module.up.detach().transpose(1, 2) @ whole_gradient)
        base = wanted[f"gradient of shared_expert.{path}.weight"] + module.based * whole_gradient.sum(0)
        torch.testing.assert_close(found[f"gradient of shared_expert.{path}.weight"], base)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("routing", ["image", "token"])
def test_all_backends_agree_in_value_and_gradient(backend, routing):
    x = torch.randn(3, 4, D)
    wanted = layer_results(low_rank_layer(routing=routing, backend="reference"), x)
    found = layer_results(low_rank_layer(routing=routing, backend=backend), x)
    assert_same(found, wanted, tolerance=1e-4)


def test_a_copy_of_a_layer_differs_from_its_own_shared_expert():
    layer = low_rank_layer()
    copied = copy.deepcopy(layer)
    assert copied.experts.fc1._linear[0] is copied.shared_expert.fc1
    assert set(copied.state_dict()) == set(layer.state_dict())
    assert not any("_linear" in name for name in layer.state_dict())


def test_the_mean_of_the_experts_is_that_of_the_whole_maps():
    layer = low_rank_layer()
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    wanted = layer.experts.materialised().to_ffn(weights)
    for (name, value), other in zip(layer.experts.to_ffn(weights).named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(value, other, msg=name)


def test_stored_size_rises_by_the_factors_alone():
    layer = low_rank_layer()
    own = sum(parameter.numel() for parameter in layer.experts.parameters())
    assert own == E * RANK * 2 * (D + 32)
