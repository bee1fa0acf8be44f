"""Every router and expert form against the same contracts, on a whole model."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vimoe
from tests.moe.support import BACKENDS
from tests.vit.families import assert_same_state, make, make_images, run
from vimoe import UserError
from vimoe.analysis.analysis import analyze
from vimoe.analysis.held_out import HeldOut
from vimoe.export.graph_model import GraphModel
from vimoe.moe.balance import update_balance
from vimoe.moe.losses import balance_loss
from vimoe.vit.blocks import moe_layers
from vimoe.vit.upcycle import get_config

FORMS: dict[str, dict[str, Any]] = {
    "preserve": {},
    "preserve, unshared": {"shared_expert": False, "top_k": 2},
    "paper": {"preset": "paper"},
    "residual": {"init": "residual", "gate": "softmax", "routing": "token"},
    "drop": {"init": "drop"},
    "split, all chosen": {"init": "split", "top_k": 4},
    "split, some chosen": {"init": "split", "top_k": 2, "routing": "token"},
    "fine-grained": {"granularity": 4, "num_experts": 3, "routing": "token"},
    "fine-grained, unshared": {"granularity": 2, "top_k": 2, "shared_expert": False},
    "low rank": {"expert_rank": 8, "routing": "token"},
    "low rank, softmax gates": {"expert_rank": 8, "gate": "softmax", "top_k": 2},
    "bias": {"balance": "bias", "routing": "token"},
    "renormalised": {"gate": "renormalised", "top_k": 2, "routing": "token"},
    "renormalised, one router": {
        **{"gate": "renormalised", "granularity": 2, "num_experts": 2, "router_scope": "model"},
    },
    "one router": {"router_scope": "model", "top_k": 2},
    "one router, low rank, bias": {"router_scope": "model", "expert_rank": 4, "balance": "bias"},
    "temperature, jitter, dropout": {"router_temperature": 0.5, "router_jitter": 0.1, "expert_dropout": 0.2},
    "prioritised": {"router": "prioritised", "routing": "token", "capacity": 0.5, "top_k": 2},
    "prioritised, residual": {"router": "prioritised", "routing": "token", "init": "residual", "balance": "bias"},
    "expert choice": {"router": "expert_choice", "routing": "token"},
    "expert choice, residual": {"router": "expert_choice", "routing": "token", "init": "residual", "gate": "softmax"},
    "soft": {"router": "soft", "routing": "token", "init": "copy", "shared_expert": False},
    "soft, residual": {"router": "soft", "routing": "token", "init": "residual", "slots": 2},
    "soft, low rank": {"router": "soft", "routing": "token", "expert_rank": 8},
}
KEEPS = {
    *("renormalised", "renormalised, one router"),
    *("preserve", "preserve, unshared", "residual", "split, all chosen", "fine-grained", "fine-grained, unshared"),
    *(
        "one router",
        "one router, low rank, bias",
        "low rank",
        "low rank, softmax gates",
        "bias",
        "temperature, jitter, dropout",
    ),
    *("prioritised, residual", "expert choice, residual", "soft, residual", "soft, low rank"),
}
every_form = pytest.mark.parametrize("form", FORMS)


def built(form: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return vimoe.upcycle(make(), **{"num_experts": 4, **FORMS[form], **settings})


def trained(form: str, **settings: Any) -> nn.Module:
    """With experts that differ and routers that choose."""
    model = built(form, **settings)
    with torch.no_grad():
        for layer in moe_layers(model).values():
            for parameter in layer.experts.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            if layer.router.decides:
                layer.router.weight.add_(0.3 * torch.randn_like(layer.router.weight))
            if layer.router.bias is not None:
                layer.router.bias.copy_(torch.tensor([0.1, -0.1, 0.2, -0.2]))
    return model


@every_form
def test_it_starts_as_the_dense_model_exactly_where_its_settings_say_so(form: str) -> None:
    images = make_images(make())
    torch.manual_seed(0)
    dense = run(make(), images)
    model = built(form)
    config = get_config(model)
    assert config is not None
    assert config.keeps_function == (form in KEEPS)
    gap = (run(model, images) - dense).abs().max()
    assert gap < 1e-5 if form in KEEPS else gap > 1e-3


@every_form
def test_a_folder_brings_it_back_to_the_bit(form: str, tmp_path: Path) -> None:
    model = trained(form)
    args = {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2}
    vimoe.save(model, tmp_path, model_args=args)
    again = vimoe.load(tmp_path)
    assert get_config(again) == get_config(model)
    assert_same_state(again.state_dict(), model.state_dict())
    images = make_images(model)
    assert torch.equal(run(again, images), run(model, images))


@every_form
def test_its_cost_is_what_torch_counts_in_a_real_forward(form: str) -> None:
    model = trained(form, backend="loop")
    for block in model.blocks:
        block.attn.fused_attn = False  # which torch does not count on a CPU
    with FlopCounterMode(display=False) as counter:
        run(model, make_images(model, 1))
    counted, cost = counter.get_total_flops() // 2, vimoe.cost(model)
    if "prioritised" in form:  # how many choices find a place depends on the image
        assert 0.8 * cost.macs < counted <= cost.macs
    else:
        assert counted == cost.macs
    assert cost.stored_params == sum(parameter.numel() for parameter in model.parameters())
    assert cost.activated_params <= cost.stored_params


@every_form
def test_every_backend_gives_the_same_value_and_gradients(form: str) -> None:
    model = trained(form, backend="reference", last=1, expert_dropout=0.0, router_jitter=0.0).train()
    images = make_images(model, 2)
    layer, found = moe_layers(model)[2], {}
    for backend in BACKENDS:
        layer.experts.backend = backend
        model.zero_grad(set_to_none=True)
        loss = model(images).square().sum()
        loss.backward()
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
        found[backend] = {"loss": loss.detach(), **gradients}
    for backend, values in found.items():
        for name, wanted in found["reference"].items():
            scale = max(1.0, float(wanted.abs().max()))
            line = f"{backend}, {name}"
            torch.testing.assert_close(values[name], wanted, rtol=1e-3, atol=1e-5 * scale, msg=line)


@every_form
def test_every_parameter_learns_and_checkpointing_changes_nothing(form: str) -> None:
    model = trained(form, expert_dropout=0.0, router_jitter=0.0).train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    images = make_images(model, 4)
    for each in (model, other):
        loss = each(images).square().sum()
        if FORMS[form].get("router") != "soft":
            loss = loss + balance_loss(each)
        loss.backward()
    for (name, parameter), again in zip(model.named_parameters(), other.parameters(), strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(again.grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert all(layer.router.weight.grad.abs().sum() > 0 for layer in moe_layers(model).values())


def seen(model: nn.Module) -> HeldOut:
    torch.manual_seed(2)
    images, labels = make_images(model, 24), torch.arange(24) % 3
    return HeldOut(lambda: list(zip(images.split(8), labels.split(8), strict=True)))


@every_form
def test_it_is_analysed_and_pruned_or_refused_in_one_line(form: str, tmp_path: Path) -> None:
    model = trained(form)
    if FORMS[form].get("router") == "soft":
        for refused in (
            lambda: analyze(model, seen(model), "abc", shuffles=99),
            lambda: vimoe.prune(model, {1: []}),
            lambda: balance_loss(model),
            lambda: vimoe.record_routing(model).__enter__(),
        ):
            with pytest.raises(UserError, match="router 'soft' "):
                refused()
        return
    if "router_scope" in FORMS[form]:
        with pytest.raises(UserError, match="chooses once for all MoE layers"):
            analyze(model, seen(model), "abc", shuffles=99)
        pruned_to_dense = vimoe.prune(copy.deepcopy(model), {number: [] for number in moe_layers(model)})
        assert get_config(pruned_to_dense) is None
        return
    counts, analysis, _ = analyze(model, seen(model), "abc", shuffles=99)
    assert [layer.layer for layer in analysis.layers] == [1, 2]
    if "router" not in FORMS[form]:
        assert counts.counts[0].sum() > 0
    first = moe_layers(model)[1]
    kept = range(first.experts.num_experts > first.router.top_k, first.experts.num_experts)
    pruned = vimoe.prune(copy.deepcopy(model), {1: kept, 2: []})
    config = get_config(pruned)
    assert config is not None
    assert config.layers == (1,)
    vimoe.save(pruned, tmp_path, model_args={"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2})
    images = make_images(model)
    assert torch.equal(run(vimoe.load(tmp_path), images), run(pruned, images))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The tensor attributes")
@every_form
def test_it_is_exported_or_refused_in_one_line(form: str) -> None:
    model = trained(form)
    if FORMS[form].get("router", "top_k") != "top_k":
        with pytest.raises(UserError, match="cannot be exported"):
            GraphModel(model, (32, 32))
        return
    images = make_images(model)
    before = run(model, images)
    program = torch.export.export(GraphModel(model, (32, 32)), (images,))
    torch.testing.assert_close(program.module()(images)[0], before, rtol=1e-4, atol=1e-5)


# At a graph break dynamo looks at `.grad` of the tensors it hands over.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("form", "compiler"),
    [*((form, "aot_eager") for form in FORMS), ("expert choice", "inductor"), ("low rank, softmax gates", "inductor")],
)
def test_compiled_it_gives_the_same_values_gradients_and_loads(form: str, compiler: str) -> None:
    if compiler == "inductor" and not shutil.which("c++"):
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    model = trained(form, expert_dropout=0.0, router_jitter=0.0).train()
    images, found, other = make_images(model, 4), list[dict[str, Tensor]](), copy.deepcopy(model)
    for each, forward in ((model, model), (other, torch.compile(other, backend=compiler))):
        loss = forward(images).square().sum()
        if FORMS[form].get("router") != "soft":
            loss = loss + balance_loss(each)
        loss.backward()
        if FORMS[form].get("balance") == "bias":
            update_balance(each, 0.1)
        gradients = {name: p.grad for name, p in each.named_parameters() if p.grad is not None}
        with torch.no_grad():
            answer = forward.eval()(images)
        found.append({"loss": loss.detach(), "answer": answer, **dict(each.named_buffers()), **gradients})
    assert found[1].keys() == found[0].keys()
    for name, wanted in found[0].items():
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found[1][name], wanted, rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.slow
@every_form
def test_no_router_and_no_form_of_experts_breaks_a_compiled_graph(form: str) -> None:
    torch._dynamo.reset()
    model = trained(form, backend="dense", expert_dropout=0.0, router_jitter=0.0).train()
    images = make_images(model, 2)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(images), model(images))


@pytest.mark.parametrize("form", ["low rank", "low rank, softmax gates", "soft, low rank"])
def test_merging_keeps_the_function_and_stores_whole_experts(form: str) -> None:
    model = trained(form)
    images, before = make_images(model), vimoe.cost(model)
    wanted = run(model, images)
    config = get_config(model)
    assert vimoe.merge(model) is model
    torch.testing.assert_close(run(model, images), wanted, rtol=1e-4, atol=1e-5)
    assert get_config(model) == replace(config, expert_rank=0)
    assert vimoe.cost(model).stored_params > before.stored_params
    with pytest.raises(UserError, match="no low-rank experts"):
        vimoe.merge(model)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"router_scope": "model", "routing": "token"},
            "it needs routing 'image', router 'top_k' and the same experts",
        ),
        ({"gate": "renormalised"}, "gate 'renormalised' is 1 for a single choice and gives its router no gradient"),
        ({"router": "soft"}, "router 'soft' is for tokens: use routing 'token'"),
        ({"router": "expert_choice", "routing": "token", "top_k": 2}, "router 'expert_choice' balances by itself"),
        ({"expert_rank": 4, "init": "copy"}, "expert_rank needs init 'residual'"),
        ({"granularity": 7}, "granularity must divide the 128 hidden units"),
        ({"granularity": 0}, "num_experts must be at least 2"),
        ({"capacity": 0}, "capacity must be a number from 0.01 to 100, got 0"),
        ({"rooter": "soft"}, "upcycle has no setting 'rooter', did you mean 'router'?"),
        ({"balance": "hope"}, "balance must be one of loss, bias, got 'hope'"),
        ({"drop_share": "half", "init": "drop"}, "drop_share must be a number from 0 to 1, got 'half'"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any], line: str) -> None:
    model = make()
    before = model.state_dict()
    with pytest.raises(UserError, match=line.replace("?", r"\?")):
        vimoe.upcycle(model, **settings)
    assert_same_state(model.state_dict(), before)


def test_merged_experts_keep_their_dropout() -> None:
    model = vimoe.merge(vimoe.upcycle(make(), last=2, init="residual", expert_rank=4, expert_dropout=0.5))
    assert [layer.experts.drop1.p for layer in moe_layers(model).values()] == [0.5] * len(moe_layers(model))
