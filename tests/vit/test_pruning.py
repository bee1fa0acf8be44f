import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vimoe
from tests.vit.families import (
    DEPTH,
    Family,
    Holder,
    assert_same_state,
    every_family,
    every_routing,
    make,
    make_images,
    randomise,
    refused,
    run,
    spread_routing,
)
from vimoe import Plan
from vimoe.moe.layer import MoELayer
from vimoe.moe.router import Selection, select_experts
from vimoe.vit.blocks import moe_layers
from vimoe.vit.plan import LayerPlan
from vimoe.vit.pruning import keep_experts, mean_ffn, merged_ffn, shared_ffn
from vimoe.vit.upcycle import get_config

ALL_FFNS = ["vit_tiny_patch16_224", "vit_giant_patch14_dinov2", "eva02_base_patch14_224"]
EVERYTHING = dict.fromkeys(range(DEPTH), ())


def upcycled(name: str = "vit_tiny_patch16_224", **settings: Any) -> nn.Module:
    """An upcycled model that training has changed everywhere."""
    model = vimoe.upcycle(make(name), **{"num_experts": 4, "last": 3, **settings})
    randomise(model)
    return model


# To a plain FFN


@every_family
@every_routing
def test_pruning_an_untrained_model_to_its_shared_experts_gives_back_the_dense_one(
    family: Family, routing: Any
) -> None:
    model = family.make()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(model, last=3, num_experts=4, routing=routing)
    assert vimoe.prune(model, EVERYTHING) is model
    assert_same_state(model.state_dict(), state)
    assert torch.equal(run(model, images), dense)


@every_family
def test_pruning_an_untrained_model_to_the_mean_of_its_experts_gives_back_the_dense_one(family: Family) -> None:
    model = family.make()
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(model, last=2, num_experts=3, shared_expert=False)
    plan = Plan((LayerPlan(1, (), load=(0.7, 0.1, 0.2)), LayerPlan(2, ())))
    vimoe.prune(model, plan)
    assert moe_layers(model) == {}
    torch.testing.assert_close(run(model, images), dense, rtol=0, atol=1e-5)


def test_plain_copies_stay_as_they_are_when_the_shared_expert_takes_over() -> None:
    model = make()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    vimoe.prune(vimoe.upcycle(model, last=3, preset="paper"), EVERYTHING)
    assert_same_state(model.state_dict(), state)


@pytest.mark.parametrize("name", ALL_FFNS)
def test_trained_shared_and_routed_experts_are_merged_into_the_ffn(name: str) -> None:
    model = upcycled(name)
    layer = copy.deepcopy(moe_layers(model)[1])
    load = torch.tensor([0.5, 0.0, 0.2, 0.3])
    vimoe.prune(model, Plan((LayerPlan(1, (), load=tuple(load.tolist())),)))
    for key, value in model.blocks[1].mlp.state_dict().items():
        mean = torch.stack([w * e for w, e in zip(load, layer.experts.state_dict()[key], strict=True)]).sum(0)
        shared = layer.shared_expert.state_dict()[key]
        expected = shared + mean if key.startswith("fc2") else (shared + mean) / 2
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL_FFNS)
def test_experts_that_started_at_0_merge_into_the_shared_one_s_hidden_units(name: str) -> None:
    model = upcycled(name, init="residual")
    layer = copy.deepcopy(moe_layers(model)[1])
    vimoe.prune(model, {1: []})
    for key, value in model.blocks[1].mlp.state_dict().items():
        shared, mean = layer.shared_expert.state_dict()[key], layer.experts.state_dict()[key].mean(0)
        torch.testing.assert_close(value, shared + mean if key.startswith("fc2") else shared, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL_FFNS)
@pytest.mark.parametrize(("init", "factor"), [("preserve", 2.0), ("copy", 1.0), ("residual", 1.0)])
def test_beside_raw_probabilities_the_shared_expert_stands_alone_scaled_to_what_it_carried(
    name: str, init: Any, factor: float
) -> None:
    model = upcycled(name, gate="softmax", init=init)
    layer = copy.deepcopy(moe_layers(model)[1])
    vimoe.prune(model, {1: []})
    for key, value in layer.shared_expert.state_dict().items():
        expected = value * factor if key.startswith("fc2") else value
        assert torch.equal(model.blocks[1].mlp.state_dict()[key], expected), key


def test_experts_that_stayed_near_each_other_merge_into_nearly_the_same_function() -> None:
    """To first order in what training changed, the merged FFN is the mean of what the experts compute."""
    model = vimoe.upcycle(make(), last=1, num_experts=2)
    layer = moe_layers(model)[DEPTH - 1]
    errors = []
    for step in (1e-2, 1e-3):
        near = copy.deepcopy(model)
        torch.manual_seed(1)
        for parameter in moe_layers(near)[DEPTH - 1].parameters():
            parameter.data += step * parameter.abs().mean() * torch.randn_like(parameter)
        x = torch.randn(1, 4, layer.router.weight.shape[1])
        moe = moe_layers(near)[DEPTH - 1]
        with torch.no_grad():
            both = [moe.experts.to_ffn(torch.tensor(w))(x) for w in ([1.0, 0.0], [0.0, 1.0])]
            expected = moe.shared_expert(x) + (both[0] + both[1]) / 2
            errors.append((merged_ffn(copy.deepcopy(moe), get_config(model))(x) - expected).abs().max().item())
    assert errors[1] < errors[0] / 30  # a tenth of the step, about a hundredth of the error


@pytest.mark.parametrize("name", ALL_FFNS)
def test_without_a_shared_expert_the_ffn_is_the_load_weighted_mean_of_the_experts(name: str) -> None:
    model = upcycled(name, shared_expert=False)
    stacked = {number: copy.deepcopy(layer.experts.state_dict()) for number, layer in moe_layers(model).items()}
    load = (5.0, 0.0, 2.0, 1.0)  # of any scale
    vimoe.prune(model, Plan((LayerPlan(0, (), load), LayerPlan(2, ()))))
    for number, shares in ((0, (0.625, 0.0, 0.25, 0.125)), (2, (0.25, 0.25, 0.25, 0.25))):
        ffn = model.blocks[number].mlp.state_dict()
        assert set(ffn) == set(stacked[number])
        for key, experts in stacked[number].items():
            expected = sum(share * expert for share, expert in zip(shares, experts, strict=True))
            torch.testing.assert_close(ffn[key], expected, rtol=1e-6, atol=1e-6)


def test_a_load_on_one_expert_alone_gives_that_expert() -> None:
    model = upcycled(shared_expert=False)
    experts = copy.deepcopy(moe_layers(model)[2].experts.state_dict())
    vimoe.prune(model, Plan((LayerPlan(2, (), (0, 0, 7, 0)),)))
    for key, value in model.blocks[2].mlp.state_dict().items():
        assert torch.equal(value, experts[key][2])


def test_both_ways_to_a_plain_ffn_can_be_called_on_a_layer() -> None:
    layer = moe_layers(upcycled())[2]
    mean = mean_ffn(layer)
    torch.testing.assert_close(mean.fc1.weight, layer.experts.fc1.weight.mean(0))
    assert shared_ffn(layer) is layer.shared_expert
    with refused("this MoE layer has no shared expert to become its FFN"):
        shared_ffn(moe_layers(upcycled(shared_expert=False))[2])


@pytest.mark.parametrize("shared_expert", [True, False])
def test_the_new_ffn_takes_over_mode_dtype_frozenness_and_dropout(shared_expert: bool) -> None:
    model = make(proj_drop_rate=0.25).double()
    model.blocks[2].mlp.requires_grad_(False)
    vimoe.upcycle(model.train(), last=2, num_experts=4, shared_expert=shared_expert)
    vimoe.prune(model, {1: [], 2: []})
    assert all(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert all(p.requires_grad for p in model.blocks[1].mlp.parameters())
    assert not any(p.requires_grad for p in model.blocks[2].mlp.parameters())
    assert model.blocks[1].mlp.drop1.p == model.blocks[2].mlp.drop2.p == 0.25
    assert not torch.equal(*(run(model, torch.ones(1, 3, 32, 32, dtype=torch.float64)) for _ in range(2)))


@every_family
@pytest.mark.parametrize("shared_expert", [True, False])
def test_a_fully_pruned_model_is_timm_s_again(family: Family, shared_expert: bool) -> None:
    dense = family.make()
    model = vimoe.upcycle(copy.deepcopy(dense), last=3, num_experts=4, shared_expert=shared_expert)
    vimoe.prune(model, EVERYTHING)
    modules = dict(model.named_modules())
    assert not any(isinstance(module, MoELayer) for module in modules.values())
    assert {name: type(module) for name, module in modules.items()} == {
        name: type(module) for name, module in dense.named_modules()
    }
    assert list(model.state_dict()) == list(dense.state_dict())
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert get_config(model) is None
    assert set(vars(model)) == set(vars(dense))
    assert model.no_weight_decay() == dense.no_weight_decay()
    assert vimoe.cost(model) == vimoe.cost(dense)
    model.load_state_dict(dense.state_dict())
    images = make_images(model)
    assert torch.equal(run(model, images), run(dense, images))


def test_a_pruned_model_trains() -> None:
    model = vimoe.prune(upcycled(shared_expert=False), {1: [], 2: [0, 1]}).train()
    model(make_images(model)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Fewer experts


@pytest.mark.parametrize("name", ALL_FFNS)
@every_routing
@pytest.mark.parametrize(
    ("top_k", "gate", "shared_expert"),
    [(1, "straight_through", True), (1, "softmax", False), (2, "straight_through", False), (2, "softmax", True)],
)
def test_removed_experts_are_as_if_the_router_never_chose_them(
    name: str, routing: Any, top_k: int, gate: Any, shared_expert: bool
) -> None:
    settings = {"top_k": top_k, "gate": gate, "shared_expert": shared_expert, "routing": routing}
    model = upcycled(name, num_experts=6, last=1, **settings)
    images = make_images(model, 16)
    spread_routing(model, images)
    kept = (5, 0, 2)
    reference = copy.deepcopy(model)
    layer = moe_layers(reference)[2]
    dropped = torch.tensor([1, 3, 4])

    def masked(_module: nn.Module, _inputs: Any, selection: Selection) -> Selection:
        return select_experts(selection.logits.index_fill(1, dropped, -torch.inf), top_k, gate)

    layer.router.register_forward_hook(masked)
    vimoe.prune(model, {2: kept})
    with vimoe.record_routing(model) as ours, vimoe.record_routing(reference) as theirs:
        torch.testing.assert_close(run(model, images), run(reference, images), rtol=0, atol=1e-5)
    ids = ours.expert_ids[2]
    assert ids.unique().numel() > 1
    assert torch.equal(torch.tensor(kept)[ids], theirs.expert_ids[2])


@pytest.mark.parametrize("name", ALL_FFNS)
def test_inputs_of_a_kept_expert_do_not_notice_the_removal(name: str) -> None:
    model = upcycled(name, last=1)
    images = make_images(model, 24)
    spread_routing(model, images)
    with vimoe.record_routing(model) as record:
        before = run(model, images)
    to_kept = torch.isin(record.expert_ids[2][:, 0], torch.tensor([1, 3]))
    assert 0 < int(to_kept.sum()) < 24
    vimoe.prune(model, {2: [1, 3]})
    after = run(model, images)
    torch.testing.assert_close(after[to_kept], before[to_kept], rtol=0, atol=1e-5)
    assert (after[~to_kept] - before[~to_kept]).abs().max() > 0.01


def test_layers_may_end_with_different_numbers_of_experts() -> None:
    model = upcycled(layers=[0, 1, 2], last=None)
    full = copy.deepcopy(moe_layers(model))
    vimoe.prune(model, {2: [3, 1], 0: []})
    layers = moe_layers(model)
    assert {number: layer.experts.num_experts for number, layer in layers.items()} == {1: 4, 2: 2}
    assert model.moe_config.layers == (1, 2)
    assert model.moe_config.num_experts == (4, 2)
    assert model.moe_config.routing_degree == 8
    assert get_config(model) == model.moe_config
    for key, value in layers[2].experts.state_dict().items():
        assert torch.equal(value, full[2].experts.state_dict()[key][[3, 1]]), key
    assert torch.equal(layers[2].router.weight, full[2].router.weight[[3, 1]])
    assert_same_state(layers[1].state_dict(), full[1].state_dict())
    assert "blocks.0.mlp.router.weight" not in model.no_weight_decay()
    assert "blocks.2.mlp.router.weight" in model.no_weight_decay()


def test_a_single_expert_may_be_left() -> None:
    model = vimoe.prune(upcycled(last=1, top_k=1), {2: [3]})
    with vimoe.record_routing(model) as record:
        run(model, make_images(model))
    assert record.expert_ids[2].tolist() == [[0]] * 4
    assert model.moe_config.num_experts == (1,)


def test_pruning_can_be_done_in_several_steps() -> None:
    once, steps = upcycled(), None
    steps = copy.deepcopy(once)
    vimoe.prune(once, {0: [], 1: [3, 0], 2: []})
    for plan in ({0: []}, {1: [0, 2, 3]}, {1: [2, 0]}, {2: []}):
        vimoe.prune(steps, plan)
    assert once.moe_config == steps.moe_config
    assert_same_state(once.state_dict(), steps.state_dict())


def test_keeping_experts_forgets_what_the_layer_decided_before() -> None:
    model = upcycled(last=1)
    run(model, make_images(model))
    layer = moe_layers(model)[2]
    keep_experts(layer, [0, 2])
    assert layer.last_selection is None


def test_what_is_removed_is_really_gone() -> None:
    model = upcycled(last=2)
    stored = [vimoe.cost(model).stored_params]
    for plan in ({1: [0, 2, 3]}, {1: [0]}, {1: []}, {2: [1, 3]}, {2: []}):
        vimoe.prune(model, plan)
        stored.append(vimoe.cost(model).stored_params)
        assert stored[-1] == sum(value.numel() for value in model.state_dict().values())
    assert stored == sorted(set(stored), reverse=True)
    assert stored[-1] == vimoe.cost(make()).stored_params


def test_an_empty_plan_changes_nothing() -> None:
    model = upcycled()
    state = copy.deepcopy(model.state_dict())
    vimoe.prune(model, {})
    assert_same_state(model.state_dict(), state)
    assert model.moe_config.layers == (0, 1, 2)


@pytest.mark.parametrize("wrap", [Holder, nn.DataParallel])
def test_a_wrapped_model_can_be_pruned(wrap) -> None:
    model = upcycled()
    wrapped = wrap(model)
    assert vimoe.prune(wrapped, {0: [], 1: [2]}) is wrapped
    assert get_config(wrapped) is model.moe_config
    assert list(moe_layers(model)) == [1, 2]
    vimoe.prune(wrapped, {1: [], 2: []})
    assert get_config(model) is None


@pytest.mark.parametrize("shared_expert", [True, False])
def test_pruning_works_on_the_meta_device(shared_expert: bool) -> None:
    model = upcycled(shared_expert=shared_expert)
    weightless = copy.deepcopy(model).to("meta")
    for plan in ({0: []}, {1: [2, 3]}):
        assert vimoe.cost(vimoe.prune(weightless, plan)) == vimoe.cost(vimoe.prune(model, plan))


# Refusals


def part(**values: Any) -> dict[str, Any]:
    return {"layers": [{"layer": 1, "action": "keep", "experts": [0, 1], **values}]}


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        ({0: []}, "plan for block 0: the model's MoE layers are blocks 1, 2"),
        ({1: [], 7: []}, "plan for block 7: the model's MoE layers are blocks 1, 2"),
        ({"1": []}, "not a plan: layer must be a whole number, got '1'"),
        ({True: []}, "not a plan: layer must be a whole number, got True"),
        ({2: [True, False]}, "plan for block 2: experts must be a list of whole numbers, got [True, False]"),
        ({1: [], 2: [0, 4]}, "plan for block 2: experts must be distinct numbers from 0 to 3, got [0, 4]"),
        ({1: [], 2: [0, 0]}, "plan for block 2: experts must be distinct numbers from 0 to 3, got [0, 0]"),
        ({1: [], 2: [0, 0.5]}, "plan for block 2: experts must be a list of whole numbers, got [0, 0.5]"),
        ({1: [], 2: [3]}, "plan for block 2: 1 experts are too few for top_k 2"),
        ({1: 3}, "plan for block 1: experts must be a list of whole numbers, got 3"),
        ([1], "a plan is a vimoe.Plan or a dictionary of blocks and the experts to keep, got [1]"),
        (None, "a plan is a vimoe.Plan or a dictionary of blocks and the experts to keep, got None"),
        (Plan((LayerPlan(1, ()), LayerPlan(1, ()))), "plan for block 1: it appears twice"),
        (
            Plan((LayerPlan(1, ()), LayerPlan(2, (), load=(1.0, 1.0)))),
            "plan for block 2: load must be 4 shares, none negative and not all 0",
        ),
    ],
)
def test_a_plan_that_does_not_fit_gets_one_line_and_changes_nothing(plan: Any, line: str) -> None:
    model = upcycled(last=2, top_k=2)
    with refused(line, model):
        vimoe.prune(model, plan)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (part(layer=0), "plan for block 0: the model's MoE layers are blocks 1, 2"),
        (part(experts=[4, 1]), "plan for block 1: experts must be distinct numbers from 0 to 3, got [4, 1]"),
        (part(experts=[1]), "plan for block 1: 1 experts are too few for top_k 2"),
        (part(action="remove"), "plan for block 1: action must be keep, merge or prune, got 'remove'"),
        (part(load=[0, 0, 0, 0]), "plan for block 1: load must be 4 shares, none negative and not all 0"),
        ({"layers": 2 * part()["layers"]}, "plan for block 1: it appears twice"),
        ({"layers": [{"layer": 1}]}, "not a plan: each layer must have its block number `layer` and an `action`, …"),
        (part(action="merge", experts=[]), "plan for block 1: action merge needs the experts that the others are …"),
        ({"blocks": []}, "not a plan: it must hold a list named layers"),
        ("plan.json", "not a plan: it must hold a list named layers"),
    ],
)
def test_a_plan_edited_by_hand_gets_one_line_and_changes_nothing(values: Any, line: str) -> None:
    model = upcycled(last=2, top_k=2)
    with refused(line, model):
        vimoe.prune(model, Plan.from_dict(values))


def test_a_dense_model_has_nothing_to_prune() -> None:
    model = make()
    with refused("this model has no MoE layer to prune", model):
        vimoe.prune(model, {2: []})


def test_a_mean_of_many_experts_in_bf16_is_as_good_as_bf16_can_be() -> None:
    model = make().to(torch.bfloat16)
    dense = {key: value.clone() for key, value in model.blocks[2].mlp.state_dict().items()}
    vimoe.prune(vimoe.upcycle(model, last=1, num_experts=7, shared_expert=False), {2: []})
    value: Tensor
    for key, value in model.blocks[2].mlp.state_dict().items():
        torch.testing.assert_close(value, dense[key], rtol=2**-8, atol=0)


# Merged experts


@pytest.mark.parametrize("name", ALL_FFNS)
@pytest.mark.parametrize(
    ("routing", "top_k", "gate"),
    [
        ("image", 1, "straight_through"),
        ("image", 2, "softmax"),
        ("token", 1, "softmax"),
        ("token", 2, "straight_through"),
    ],
)
def test_merging_experts_that_are_one_another_s_shuffle_keeps_the_function_and_saves_an_ffn(
    name: str, routing: Any, top_k: int, gate: Any, tmp_path: Path
) -> None:
    model = upcycled(name, top_k=top_k, gate=gate, routing=routing, last=2)
    images = make_images(model, 8)
    spread_routing(model, images)
    experts = moe_layers(model)[1].experts
    units = torch.randperm(experts.fc2.weight.shape[2])
    for key, value in experts.named_parameters():
        own = value.data[1].T if key == "fc2.weight" else value.data[1]
        blocks = own.chunk(2 if experts.packed and key.startswith("fc1.") else 1)
        own = own if key == "fc2.bias" else torch.cat([block[units] for block in blocks])
        value.data[3] = own.T if key == "fc2.weight" else own
    before, cost = run(model, images), vimoe.cost(model)
    one = sum(parameter[0].numel() for parameter in experts.parameters())
    vimoe.prune(model, Plan((LayerPlan(1, (2, 1, 0), (0.4, 0.1, 0.1, 0.4), merge=True),)))
    config = get_config(model)
    assert (config.num_experts, config.router_rows) == ((3, 4), ((0, 1, 1, 2), ()))
    torch.testing.assert_close(run(model, images), before, rtol=0, atol=1e-5)
    now = vimoe.cost(model)
    assert now.stored_params == cost.stored_params - one
    assert now.activated_params == cost.activated_params
    vimoe.save(model, tmp_path)
    again = vimoe.load(tmp_path)
    assert get_config(again) == config
    assert torch.equal(run(again, images), run(model, images))
    vimoe.prune(again, {1: [0, 2]})
    assert (get_config(again).num_experts, get_config(again).router_rows) == ((2, 4), ())


def test_what_chose_a_merged_expert_gets_the_one_it_went_into_and_nothing_else_changes() -> None:
    model = upcycled(last=1, routing="token")
    layer, x = moe_layers(model)[DEPTH - 1], torch.randn(16, 5, 32)
    for value in layer.experts.parameters():
        value.data[3] = value.data[0] + 1e-4 * torch.randn_like(value.data[0])
    y = run(layer, x)
    old = layer.last_selection.expert_ids.flatten()
    assert set(old.tolist()) == {0, 1, 2, 3}
    vimoe.prune(model, Plan((LayerPlan(DEPTH - 1, (0, 1, 2), (0.3, 0.2, 0.4, 0.1), merge=True),)))
    z = run(layer, x)
    assert torch.equal(layer.last_selection.expert_ids.flatten(), torch.where(old == 3, 0, old))
    others = (old == 1) | (old == 2)
    torch.testing.assert_close(z.flatten(0, 1)[others], y.flatten(0, 1)[others], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z, y, rtol=0, atol=1e-2)


def test_a_useless_expert_without_load_leaves_the_vital_one_as_it_is() -> None:
    model = upcycled(last=1)
    vital = {name: value[2].clone() for name, value in moe_layers(model)[DEPTH - 1].experts.named_parameters()}
    vimoe.prune(model, Plan((LayerPlan(DEPTH - 1, (2,), (0.0, 0.0, 1.0, 0.0), merge=True),)))
    for name, value in moe_layers(model)[DEPTH - 1].experts.named_parameters():
        torch.testing.assert_close(value[0], vital[name], rtol=0, atol=1e-7)
    assert get_config(model).router_rows == ((0, 0, 0, 0),)


def test_a_merged_model_trains_on_every_parameter_and_all_backends_agree() -> None:
    model = upcycled(last=1, routing="token", top_k=2).train()
    spread_routing(model, make_images(model, 8))
    vimoe.prune(model, Plan((LayerPlan(DEPTH - 1, (0, 1), merge=True),)))
    images, found = make_images(model, 8), {}
    for backend in ("reference", "loop", "grouped", "dense", "gathered"):
        moe_layers(model)[DEPTH - 1].experts.backend = backend
        model.zero_grad()
        loss = model(images).square().mean() + 0.01 * vimoe.balance_loss(model)
        loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
        found[backend] = [loss.detach(), *gradients]
    for backend, values in found.items():
        torch.testing.assert_close(values, found["reference"], rtol=1e-3, atol=1e-5, msg=backend)
    assert moe_layers(model)[DEPTH - 1].router.weight.grad.abs().sum(1).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"expert_rank": 2},
        {"granularity": 2},
        {"balance": "bias"},
        {"router": "prioritised", "routing": "token"},
        {"router_scope": "model"},
    ],
)
def test_experts_that_cannot_be_merged_are_refused_and_the_model_stays(settings: dict[str, Any]) -> None:
    model = upcycled(**settings)
    plan = Plan((LayerPlan(1, ()), LayerPlan(2, (0, 1), merge=True)))
    with refused("experts merge under …: with these settings they can only be removed", model):
        vimoe.prune(model, plan)
