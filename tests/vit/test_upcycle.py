import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import vimoe
from tests.vit.families import (
    DEPTH,
    FAMILIES,
    SMALL,
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
    shared_or_not,
)
from vimoe import MoEConfig
from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import moe_layers
from vimoe.vit.upcycle import get_config, install, set_config

# The function


@every_family
@every_routing
@shared_or_not
def test_upcycling_does_not_change_what_a_model_computes(family: Family, routing: Any, shared_expert: bool) -> None:
    model = family.make()
    images = make_images(model)
    dense, dense_in_training = run(model, images), run(model.train(), images)
    upcycled = vimoe.upcycle(model, num_experts=4, routing=routing, shared_expert=shared_expert)
    assert upcycled is model
    assert list(moe_layers(model)) == [DEPTH - 2, DEPTH - 1]
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(run(model, images), dense_in_training, rtol=0, atol=1e-5)
    torch.testing.assert_close(run(model.eval(), images), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_base_patch14_224", "vit_giant_patch14_dinov2"])
@every_routing
@shared_or_not
@pytest.mark.parametrize("top_k", [2, 3])
def test_several_chosen_experts_do_not_change_it_either(
    name: str, routing: Any, shared_expert: bool, top_k: int
) -> None:
    model = make(name)
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(model, last=3, num_experts=3, top_k=top_k, routing=routing, shared_expert=shared_expert)
    torch.testing.assert_close(run(model, images), dense, rtol=0, atol=1e-5)


@every_routing
def test_the_patch_mean_as_the_gate_s_input_does_not_change_it_either(routing: Any) -> None:
    model = make("vit_small_patch14_reg4_dinov2")
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(model, routing=routing, gate_input="mean")
    torch.testing.assert_close(run(model, images), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_plus_patch16_dinov3"])
@shared_or_not
def test_the_paper_s_preset_does_change_what_a_model_computes(name: str, shared_expert: bool) -> None:
    model = make(name)
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(model, shared_expert=shared_expert, preset="paper")
    config = get_config(model)
    assert config is not None
    assert (config.gate, config.init) == ("softmax", "copy")
    assert (run(model, images) - dense).abs().max() > 0.01


def test_the_paper_s_preset_gives_raw_softmax_gates_and_plain_copies() -> None:
    model = make()
    ffns = {i: copy.deepcopy(model.blocks[i].mlp) for i in (1, 2)}
    vimoe.upcycle(model, num_experts=3, preset="paper")
    with vimoe.record_routing(model) as record:
        run(model, make_images(model))
    for number, layer in moe_layers(model).items():
        for name, value in ffns[number].state_dict().items():
            assert torch.equal(layer.shared_expert.state_dict()[name], value)
            assert all(torch.equal(stacked, value) for stacked in layer.experts.state_dict()[name])
        largest = layer.last_selection.probs.max(1, keepdim=True).values
        torch.testing.assert_close(record.gates[number], largest, rtol=1e-6, atol=0)


@every_family
@pytest.mark.parametrize("gate", ["straight_through", "softmax"])
def test_experts_that_start_at_0_leave_the_dense_model_s_output_whatever_the_gate(family: Family, gate: Any) -> None:
    model = family.make()
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(model, num_experts=3, routing="token", gate=gate, init="residual")
    torch.testing.assert_close(run(model, images), dense, rtol=0, atol=1e-6)


def test_gate_and_init_can_be_chosen_apart_from_the_preset() -> None:
    model = make()
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(model, preset="paper", gate="straight_through", init="preserve")
    torch.testing.assert_close(run(model, images), dense, rtol=0, atol=1e-5)


def test_upcycling_starts_training_from_the_dense_model_s_gradient() -> None:
    # Both halves of an FFN see the gradient that the whole one saw; the rest of the model sees it unchanged.
    model = make()
    images = make_images(model)
    model(images).square().sum().backward()
    dense = {name: p.grad.clone() for name, p in model.named_parameters() if ".mlp." not in name}
    model.zero_grad()
    vimoe.upcycle(model)
    model(images).square().sum().backward()
    for name, grad in dense.items():
        if name.startswith(("norm", "head", "blocks.2.ls2")):  # what lies behind the last router
            torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-5)
    assert all(p.grad is not None for p in model.parameters())
    assert all(layer.router.weight.grad.abs().sum() > 0 for layer in moe_layers(model).values())


# Names and values


@every_family
@shared_or_not
def test_all_other_parameters_keep_timm_s_names_and_values(family: Family, shared_expert: bool) -> None:
    model = family.make()
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    vimoe.upcycle(model, layers=[0, 2], num_experts=3, shared_expert=shared_expert)
    changed = ("blocks.0.mlp.", "blocks.2.mlp.")
    state = model.state_dict()
    assert_same_state(
        {name: value for name, value in state.items() if not name.startswith(changed)},
        {name: value for name, value in dense.items() if not name.startswith(changed)},
    )
    replaced = {name for name in dense if name.startswith(changed)}
    experts = {name.replace(".mlp.", ".mlp.experts.") for name in replaced}
    shared = {name.replace(".mlp.", ".mlp.shared_expert.") for name in replaced if shared_expert}
    routers = {f"{prefix}router.weight" for prefix in changed}
    assert {name for name in state if name.startswith(changed)} == experts | shared | routers
    for name in replaced:
        scale = 0.5 if shared_expert and ".fc2." in name else 1.0
        stacked = state[name.replace(".mlp.", ".mlp.experts.")]
        assert all(torch.equal(value, dense[name] * scale) for value in stacked)
        if shared_expert:
            assert torch.equal(state[name.replace(".mlp.", ".mlp.shared_expert.")], dense[name] * scale)


def test_untouched_blocks_hold_the_very_same_modules_and_parameters() -> None:
    model = make()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    vimoe.upcycle(model, last=1)
    for name, parameter in model.named_parameters():
        if not name.startswith("blocks.2.mlp."):
            assert id(parameter) == parameters[name], name


def test_frozen_ffns_give_frozen_experts_and_a_router_that_learns() -> None:
    model = make().requires_grad_(False)
    vimoe.upcycle(model, last=1)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["blocks.2.mlp.router.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_experts_and_router_take_the_model_s_dtype(dtype: torch.dtype) -> None:
    model = vimoe.upcycle(make().to(dtype))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert run(model, make_images(model).to(dtype)).dtype == dtype


def test_upcycling_works_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", **SMALL, img_size=32)
        vimoe.upcycle(model)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 5)
    assert all(p.is_meta for p in model.parameters())
    assert vimoe.cost(model) == vimoe.cost(vimoe.upcycle(make()))


def test_dropout_and_activation_of_the_ffn_are_taken_over() -> None:
    model = make("vit_giant_patch14_dinov2", proj_drop_rate=0.25, act_layer=nn.Tanh)
    vimoe.upcycle(model, last=1)
    layer = moe_layers(model)[2]
    for ffn in (layer.experts, layer.shared_expert):
        assert isinstance(ffn.act, nn.Tanh)
        assert ffn.drop1.p == ffn.drop2.p == 0.25
    images = make_images(model)
    assert torch.equal(run(model, images), run(model, images))
    assert not torch.equal(run(model.train(), images), run(model, images))


# The configuration


def test_by_default_the_last_two_blocks_get_eight_experts_and_a_shared_one() -> None:
    model = vimoe.upcycle(make())
    assert model.moe_config == MoEConfig(
        layers=(1, 2),
        num_experts=(8, 8),
        top_k=1,
        shared_expert=True,
        routing="image",
        gate="straight_through",
        gate_input="cls",
        init="preserve",
        router_noise=False,
    )


def test_layers_may_be_given_in_any_order() -> None:
    model = vimoe.upcycle(make(), layers=[2, 0], num_experts=2)
    assert model.moe_config.layers == (0, 2)
    assert list(moe_layers(model)) == [0, 2]


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.class_token], ids=lambda family: family.name)
def test_models_without_a_class_token_are_routed_by_their_mean_patch(family: Family) -> None:
    model = vimoe.upcycle(family.make())
    assert model.moe_config.gate_input == "mean"
    assert all(layer.num_prefix_tokens == family.prefix for layer in moe_layers(model).values())


def test_the_mean_patch_leaves_class_token_and_registers_out() -> None:
    model = vimoe.upcycle(make("vit_small_patch14_reg4_dinov2"), last=1, gate_input="mean")
    layer = moe_layers(model)[2]
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run(model, make_images(model))
    expected = seen[0][:, 5:].mean(1) @ layer.router.weight.T
    torch.testing.assert_close(layer.last_selection.logits, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", [Holder, nn.DataParallel, lambda model: Holder(Holder(model))])
def test_the_configuration_is_found_through_wrappers(wrap) -> None:
    model = vimoe.upcycle(make())
    assert get_config(wrap(model)) is model.moe_config
    assert get_config(wrap(make())) is None


def test_a_vit_inside_another_module_can_be_upcycled_and_is_known_from_inside_and_outside() -> None:
    inner = make()
    holder = Holder(inner)
    images = make_images(inner)
    dense = run(holder, images)
    assert vimoe.upcycle(holder) is holder
    torch.testing.assert_close(run(holder, images), dense, rtol=0, atol=1e-5)
    assert get_config(holder) == get_config(inner) == inner.moe_config
    vimoe.prune(inner, {1: []})
    assert get_config(holder) == get_config(inner)
    assert get_config(holder).layers == (2,)
    vimoe.prune(holder, {2: []})
    assert get_config(holder) is None
    assert get_config(inner) is None


def test_install_puts_the_layers_of_a_configuration_into_a_dense_model() -> None:
    config = MoEConfig(layers=(0, 2), num_experts=(2, 5), top_k=2, routing="token", gate_input="mean")
    model = make()
    install(model, config)
    assert get_config(model) is config
    assert {number: layer.experts.num_experts for number, layer in moe_layers(model).items()} == {0: 2, 2: 5}
    set_config(model, None)
    assert get_config(model) is None


# What timm's models can do, they still can


def upcycled_and_dense(family: Family | str, **args: Any) -> tuple[nn.Module, nn.Module]:
    dense = make(family) if isinstance(family, str) else family.make()
    return vimoe.upcycle(copy.deepcopy(dense), num_experts=3, **args), dense


@every_family
@every_routing
def test_features_and_intermediates_are_the_dense_model_s(family: Family, routing: Any) -> None:
    model, dense = upcycled_and_dense(family, routing=routing)
    images = make_images(dense)
    with torch.no_grad():
        features = model.forward_features(images)
        torch.testing.assert_close(features, dense.forward_features(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(model.forward_head(features), run(dense, images), rtol=0, atol=1e-5)
        last, steps = model.forward_intermediates(images, indices=[1, 2])
        dense_last, dense_steps = dense.forward_intermediates(images, indices=[1, 2])
    torch.testing.assert_close(last, dense_last, rtol=0, atol=1e-5)
    torch.testing.assert_close(steps, dense_steps, rtol=0, atol=1e-5)


@every_routing
@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_timm_s_feature_extractor_can_be_upcycled(name: str, routing: Any) -> None:
    model = make(name, features_only=True, out_indices=(0, 2), in_chans=1)
    images = torch.randn(2, 1, *(2 * [28 if "patch14" in name else 32]))
    with torch.no_grad():
        dense = model(images)
        features = vimoe.upcycle(model, routing=routing)(images)
    torch.testing.assert_close(features, dense, rtol=0, atol=1e-5)
    with vimoe.record_routing(model) as record:
        run(model, images)
    assert list(record.expert_ids) == [1, 2]
    assert vimoe.cost(model).macs > 0


@every_routing
def test_timm_s_feature_extraction_by_fx_takes_the_layer_whole(routing: Any) -> None:
    model, _ = upcycled_and_dense("vit_tiny_patch16_224", routing=routing)
    images = make_images(model)
    extract = timm.models.create_feature_extractor(model, {"blocks.1.mlp": "ffn", "head": "logits"})
    found: list[Tensor] = []
    moe_layers(model)[1].register_forward_hook(lambda _, inputs, output: found.append(output))
    expected = run(model, images)
    features = run(extract, images)
    assert torch.equal(features["logits"], expected)
    assert torch.equal(features["ffn"], found[0])


@every_family
def test_the_classifier_can_be_reset_after_upcycling(family: Family) -> None:
    model, _ = upcycled_and_dense(family)
    images = make_images(model)
    model.reset_classifier(7)
    assert run(model, images).shape == (4, 7)
    model.reset_classifier(0)
    assert run(model, images).shape == (4, model.num_features)


@every_family
def test_experts_belong_to_the_same_layer_as_the_rest_of_their_block(family: Family) -> None:
    model, _ = upcycled_and_dense(family)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for number in range(DEPTH):
        (of_norm,) = {groups[name] for name in groups if name.startswith(f"blocks.{number}.norm1")}
        in_block = {groups[name] for name in groups if name.startswith(f"blocks.{number}.")}
        assert in_block == {of_norm}


@every_family
def test_layer_decay_and_weight_decay_reach_the_right_parameters(family: Family) -> None:
    model, dense = upcycled_and_dense(family)

    def options(model: nn.Module) -> dict[str, tuple[float, float]]:
        names = {id(p): name for name, p in model.named_parameters()}
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
        return {
            names[id(p)]: (group["weight_decay"], group["lr_scale"])
            for group in optimizer.param_groups
            for p in group["params"]
        }

    ours, timms = options(model), options(dense)
    assert set(ours) == {name for name, _ in model.named_parameters()}
    for name, (weight_decay, lr_scale) in ours.items():
        of_dense = name.replace(".experts.", ".").replace(".shared_expert.", ".")
        if name.endswith(".router.weight"):
            assert weight_decay == 0.0, name
            assert lr_scale == timms[name.replace("mlp.router", "norm1")][1]
        else:
            assert (weight_decay, lr_scale) == timms[of_dense], name
    decayed = [name for name, (decay, _) in ours.items() if ".experts." in name and decay == 0.05]
    assert decayed == [n for n, p in model.named_parameters() if ".experts." in n and p.ndim == 3]


def test_the_experts_of_an_ffn_with_inner_norm_are_named_in_no_weight_decay() -> None:
    model = vimoe.upcycle(make("eva02_base_patch14_224"), last=1)
    own = make("eva02_base_patch14_224").no_weight_decay()
    experts = {f"{part}.bias" for part in ("fc1_g", "fc1_x", "norm", "fc2")} | {"norm.weight"}
    assert model.no_weight_decay() == own | {"blocks.2.mlp.router.weight"} | {
        f"blocks.2.mlp.experts.{name}" for name in experts
    }


@every_family
def test_gradients_are_the_same_with_activation_checkpointing(family: Family) -> None:
    model, _ = upcycled_and_dense(family)
    randomise(model)
    model.train()
    images = make_images(model)
    gradients, losses = [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        output = model(images)
        loss = output.square().mean() + vimoe.balance_loss(model)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert torch.equal(losses[0], losses[1])
    assert gradients[0].keys() == gradients[1].keys()
    assert any("router" in name for name in gradients[0])
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=0, atol=0, msg=name)


# Copies


def test_a_copy_is_a_model_of_its_own() -> None:
    model = vimoe.upcycle(make(), num_experts=3)
    images = make_images(model)
    output = run(model, images)
    clone = copy.deepcopy(model)
    assert clone.moe_config == model.moe_config
    assert clone.no_weight_decay() == model.no_weight_decay()
    vimoe.prune(clone, {1: []})
    assert "blocks.1.mlp.router.weight" not in clone.no_weight_decay()
    assert "blocks.1.mlp.router.weight" in model.no_weight_decay()
    assert model.moe_config.layers == (1, 2)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert torch.equal(run(model, images), output)


def test_a_model_can_be_sent_to_another_process() -> None:
    model = vimoe.upcycle(make(), num_experts=3)
    images = make_images(model)
    output = run(model, images)
    arrived = pickle.loads(pickle.dumps(model))
    assert arrived.moe_config == model.moe_config
    assert arrived.no_weight_decay() == model.no_weight_decay()
    assert torch.equal(run(arrived, images), output)
    vimoe.prune(arrived, {1: []})
    assert "blocks.1.mlp.router.weight" not in arrived.no_weight_decay()


# Refusals


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"last": 0}, "last must be 1 to 3, the number of blocks of this model, got 0"),
        ({"last": 4}, "last must be 1 to 3, the number of blocks of this model, got 4"),
        ({"last": -1}, "last must be 1 to 3, the number of blocks of this model, got -1"),
        ({"last": 1, "layers": [2]}, "give either last or layers, not both"),
        ({"layers": []}, "layers must name at least one block, 0 to 2"),
        ({"layers": [3]}, "block 3 does not exist: this model's blocks are 0 to 2"),
        ({"layers": [0, -1]}, "block -1 does not exist: this model's blocks are 0 to 2"),
        ({"layers": [1, 1]}, "layers must be distinct block numbers in ascending order, got [1, 1]"),
        ({"num_experts": 0}, "num_experts must be at least 2 for a choice between experts, got 0"),
        ({"num_experts": 1}, "num_experts must be at least 2 for a choice between experts, got 1"),
        ({"num_experts": 1000}, "num_experts of block 1 must be 1 to 256, got 1000"),
        ({"num_experts": 4, "top_k": 5}, "top_k must be between 1 and the 4 experts of block 1, got 5"),
        ({"top_k": 0}, "top_k must be between 1 and the 8 experts of block 1, got 0"),
        ({"preset": "mine"}, "preset must be one of preserve, paper, got 'mine'"),
        ({"routing": "patch"}, "routing must be one of image, token, got 'patch'"),
        ({"gate": "sigmoid"}, "gate must be one of straight_through, softmax, renormalised, got 'sigmoid'"),
        ({"init": "zeros"}, "init must be one of preserve, copy, residual, drop, split, got 'zeros'"),
        ({"init": "residual", "shared_expert": False}, "init 'residual' needs the shared expert: …"),
        ({"last": True}, "last must be a whole number, got True"),
        ({"last": "2"}, "last must be a whole number, got '2'"),
        ({"layers": 2}, "layers must be a list of whole numbers, got 2"),
        ({"layers": "12"}, "layers must be a list of whole numbers, got '12'"),
        ({"layers": [1.0]}, "layers must be a list of whole numbers, got [1.0]"),
        ({"num_experts": 4.0}, "num_experts must be a whole number, got 4.0"),
        ({"num_experts": None}, "num_experts must be a whole number, got None"),
        ({"top_k": True}, "top_k must be a whole number, got True"),
        ({"shared_expert": "no"}, "shared_expert must be true or false, got 'no'"),
        ({"router_noise": 0.1}, "router_noise must be true or false, got 0.1"),
        ({"preset": ["paper"]}, "preset must be one of preserve, paper, got ['paper']"),
        ({"routing": None}, "routing must be one of image, token, got None"),
        ({"gate": ""}, "gate must be one of straight_through, softmax, renormalised, got ''"),
        ({"backend": ["loop"]}, "backend must be one of …, got ['loop']"),
        ({"gate_input": "max"}, "gate_input must be one of cls, mean, got 'max'"),
        ({"backend": "tutel"}, "backend must be one of auto, reference, loop, grouped, dense, gathered, got 'tutel'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_out_of_range_gets_one_line_and_leaves_the_model_dense(settings: Any, line: str) -> None:
    model = make()
    with refused(line, model):
        vimoe.upcycle(model, **settings)
    assert moe_layers(model) == {}
    assert vimoe.upcycle(model) is model


@pytest.mark.parametrize("model", [None, "vit_tiny_patch16_224", dict])
@pytest.mark.parametrize(
    "call",
    [
        vimoe.upcycle,
        vimoe.balance_loss,
        vimoe.cost,
        lambda model: vimoe.prune(model, {}),
        lambda model: vimoe.save(model, "nowhere"),
        lambda model: vimoe.record_routing(model).__enter__(),
    ],
    ids=["upcycle", "balance_loss", "cost", "prune", "save", "record_routing"],
)
def test_what_is_no_model_gets_one_line(call: Any, model: Any) -> None:
    with refused(f"the model must be a torch module, got {type(model).__name__}"):
        call(model)


def test_upcycling_twice_is_refused() -> None:
    model = vimoe.upcycle(make(), last=1)
    with refused("this model has MoE layers already: upcycle a dense model, or prune this one first", model):
        vimoe.upcycle(model)
    with refused("this model has MoE layers already: upcycle a dense model, or prune this one first", model):
        vimoe.upcycle(Holder(model), layers=[0])


def test_a_fully_pruned_model_can_be_upcycled_again() -> None:
    model = make()
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(vimoe.prune(vimoe.upcycle(model, last=1), {2: []}), last=2)
    torch.testing.assert_close(run(model, images), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.class_token], ids=lambda family: family.name)
def test_routing_by_a_class_token_that_is_not_there_is_refused(family: Family) -> None:
    model = family.make()
    line = "gate_input 'cls' needs a class token at the FFN, and this model has none: use 'mean'"
    with refused(line, model):
        vimoe.upcycle(model, gate_input="cls")


class Strange(nn.Module):
    """An FFN that is none of those we know."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 8), nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).sin())


def test_an_ffn_of_unknown_kind_is_refused_before_anything_is_changed() -> None:
    model = make()
    model.blocks[2].mlp = Strange()
    line = (
        "an FFN of type Strange cannot become experts: supported are two linear layers "
        "fc1/fc2 around an activation, and SwiGLU (packed fc1, or fc1_g/fc1_x)"
    )
    with refused(line, model):
        vimoe.upcycle(model, last=3)
    assert vimoe.upcycle(model, layers=[0, 1]) is model


class Windowed(Block):
    """A block whose FFN sees halves of an image as if each were one."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x + self.attn(self.norm1(x))
        halves = x.reshape(2 * len(x), -1, x.shape[-1])
        return (halves + self.mlp(self.norm2(halves))).reshape(x.shape)


def windowed() -> nn.Module:
    model = make("vit_base_patch16_siglip_224")
    for block in model.blocks:
        block.__class__ = Windowed
    return model


def test_image_routing_is_refused_where_an_ffn_sees_windows() -> None:
    model = windowed()
    line = "routing 'image' needs whole images, and this model's FFNs see windows: use routing 'token'"
    with refused(line, model):
        vimoe.upcycle(model)


def test_token_routing_works_where_an_ffn_sees_windows() -> None:
    model = windowed()
    images = make_images(model)
    dense = run(model, images)
    torch.testing.assert_close(run(vimoe.upcycle(model, routing="token"), images), dense, rtol=0, atol=1e-5)


def test_installing_a_configuration_of_a_deeper_model_is_refused() -> None:
    model = make()
    with refused("block 11 does not exist: the model has 3 blocks", model):
        install(model, MoEConfig(layers=(0, 11), num_experts=(2, 2)))


def test_an_upcycled_block_really_holds_an_moe_layer() -> None:
    model = vimoe.upcycle(make(), last=1)
    assert [name for name, module in model.named_modules() if isinstance(module, MoELayer)] == ["blocks.2.mlp"]
