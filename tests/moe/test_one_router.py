"""One router for all MoE layers: the first decides, the others follow."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import vimoe
from tests.vit.families import make, make_images, run
from vimoe import UserError
from vimoe.moe.losses import balance_loss, load_balance_loss
from vimoe.moe.one_router import FollowingRouter, LeadingRouter
from vimoe.vit.blocks import moe_layers
from vimoe.vit.upcycle import get_config


def built(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = vimoe.upcycle(make(), **{"last": 3, "num_experts": 4, "router_scope": "model", **settings})
    with torch.no_grad():
        for layer in moe_layers(model).values():
            for parameter in (*layer.experts.parameters(), *layer.router.parameters()):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def as_if_each_decided_so(model: nn.Module, images: Tensor) -> Tensor:
    """The same model with full routers that are overruled by what the first one says."""
    config = get_config(model)
    assert config is not None
    free = vimoe.upcycle(make(), last=3, num_experts=4, top_k=config.top_k)
    for layer, other in zip(moe_layers(free).values(), moe_layers(model).values(), strict=True):
        layer.experts.load_state_dict(other.experts.state_dict())
    first = moe_layers(model)[0].router
    free.load_state_dict({n: v for n, v in model.state_dict().items() if ".router." not in n}, strict=False)
    decided = []

    def overrule(_router: nn.Module, inputs: tuple[Tensor], _selection: object) -> object:
        if not decided:
            with torch.no_grad():
                decided.append(TopK(first, inputs[0]))
        return decided[0]

    for layer in moe_layers(free).values():
        layer.router.register_forward_hook(overrule)
    return run(free, images)


def TopK(router: nn.Module, x: Tensor) -> object:  # noqa: N802
    return super(LeadingRouter, router).forward(x)  # type: ignore[misc]


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_others_take_the_choices_of_the_first(top_k: int) -> None:
    model = built(top_k=top_k)
    images = make_images(model)
    with vimoe.record_routing(model) as record:
        y = run(model, images)
    first, *others = record.expert_ids.values()
    assert len(others) == 2
    assert all(torch.equal(ids, first) for ids in others)
    assert torch.equal(y, as_if_each_decided_so(model, images))
    routers = [name for name, _ in model.named_parameters() if ".router." in name]
    assert routers == ["blocks.0.mlp.router.weight"]
    config = get_config(model)
    assert config is not None
    assert config.routing_degree == {1: 4, 2: 6}[top_k]


def test_the_one_router_learns_from_every_layer_and_is_balanced_once() -> None:
    model = built().train()
    router = moe_layers(model)[0].router
    images = make_images(model, 8)
    model(images)
    selection = moe_layers(model)[0].last_selection
    assert selection is not None
    assert torch.equal(balance_loss(model), load_balance_loss(selection.probs, selection.expert_ids))
    gradients = []
    for block in (0, 2):
        model.zero_grad()
        for number, layer in moe_layers(model).items():
            layer.experts.requires_grad_(number == block)
        layers = moe_layers(model)
        answers = dict[str, Tensor]()
        handle = layers[block].register_forward_hook(partial(keep, answers))
        model(images)
        handle.remove()
        answers["last"].square().sum().backward()
        gradients.append(router.weight.grad.clone())
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not torch.allclose(*gradients)


def keep(answers: dict[str, Tensor], _layer: nn.Module, _inputs: object, output: Tensor) -> None:
    answers["last"] = output


def test_checkpointing_gives_the_same_gradients_and_another_forward_in_between_is_refused() -> None:
    model = built().train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    images = make_images(model, 4)
    for _ in range(2):  # a step is no forward in between
        for each in (model, other):
            each.zero_grad()
            each(images).square().sum().backward()
    for (name, parameter), again in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(again.grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
    loss = other(images).square().sum()
    run(other, make_images(model, 4))
    other.train()
    with pytest.raises(UserError, match="one backward after each forward"):
        loss.backward()


def test_a_block_that_runs_alone_is_refused() -> None:
    model = built()
    layer = moe_layers(model)[2]
    assert isinstance(layer.router, FollowingRouter)
    with pytest.raises(UserError, match="without the first MoE layer"):
        layer(torch.randn(2, 5, 32))
    run(model, make_images(model, 3))
    with pytest.raises(UserError, match="without the first MoE layer"):
        layer(torch.randn(2, 5, 32))


def test_a_copy_follows_its_own_router() -> None:
    model = built()
    other = copy.deepcopy(model)
    images = make_images(model)
    with torch.no_grad():
        moe_layers(other)[0].router.weight.neg_()
    assert not torch.equal(run(other, images), run(model, images))
    assert torch.equal(run(other, images), as_if_each_decided_so(other, images))


@pytest.mark.parametrize(
    ("plan", "fits"),
    [
        ({2: []}, True),
        ({1: [], 2: []}, True),
        ({0: [], 1: [], 2: []}, True),
        ({0: [2, 0], 1: [2, 0], 2: []}, True),
        ({0: [0, 2], 1: [2, 0], 2: []}, False),
        ({0: []}, False),
        ({0: [0, 2]}, False),
        ({0: [0, 2], 1: [0, 1], 2: []}, False),
        ({1: [0, 1]}, False),
    ],
)
def test_a_plan_keeps_the_router_and_the_same_experts_in_each_layer(plan: dict[int, list[int]], fits: bool) -> None:
    model = built()
    if not fits:
        with pytest.raises(UserError, match="the router of block 0 decides for all MoE layers"):
            vimoe.prune(model, plan)
        return
    pruned = vimoe.prune(model, plan)
    images = make_images(model)
    y = run(pruned, images)
    assert y.isfinite().all()
    if get_config(pruned) is not None:
        with vimoe.record_routing(pruned) as record:
            run(pruned, images)
        ids = list(record.expert_ids.values())
        assert all(torch.equal(each, ids[0]) for each in ids)
