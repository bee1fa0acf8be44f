"""Experts under `torch.func`: per-sample gradients and second derivatives of the backends made of plain operations."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .support import KINDS, D, make_experts

IDS = torch.tensor([[2], [0], [2]])


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, D, generator=generator, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)


@pytest.mark.parametrize("backend", ["gathered", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_sample_add_up_to_the_batchs(kind, backend):
    experts = make_experts(kind, backend=backend, norm=True).double()
    parameters = dict(experts.named_parameters())
    x, gates = inputs()

    def loss(parameters, x, ids, gates):
        return functional_call(experts, parameters, (x[None], ids[None], gates[None])).square().sum()

    by_sample = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, x, IDS, gates)
    experts.backend = "loop"
    experts(x, IDS, gates).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(by_sample[name].sum(0), parameter.grad, msg=name)


@pytest.mark.parametrize("backend", ["gathered", "dense"])
def test_second_derivatives_are_those_of_finite_differences(backend):
    experts = make_experts(backend=backend).double()
    x, gates = inputs()
    assert torch.autograd.gradgradcheck(
        lambda x, gates: experts(x, IDS, gates), (x.requires_grad_(), gates.requires_grad_())
    )
