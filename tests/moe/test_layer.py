"""The whole layer: what it computes, keeps, copies, compiles and exports."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from vimoe.errors import UserError
from vimoe.moe.layer import MoELayer
from vimoe.moe.losses import balance_loss

from .support import (
    BACKENDS,
    KINDS,
    D,
    E,
    assert_same,
    layer_results,
    make_ffn,
    make_layer,
    property_test,
    randomize,
    upcycled,
)

ROUTINGS = pytest.mark.parametrize("routing", ["image", "token"])
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def images(batch: int = 5, tokens: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, D, generator=generator, dtype=torch.float64).to(dtype)


# What it computes


@pytest.mark.parametrize("k", [1, 2, E])
@pytest.mark.parametrize("shared", [True, False], ids=["shared expert", "no shared expert"])
@ROUTINGS
@EVERY_KIND
def test_right_after_upcycling_the_layer_computes_what_the_ffn_did(kind, routing, shared, k):
    torch.manual_seed(0)
    ffn = make_ffn(kind, norm=True)
    x = images()
    for gate_input in ("cls", "mean"):
        options = {"top_k": k, "shared_expert": shared, "routing": routing, "gate_input": gate_input}
        layer = upcycled(copy.deepcopy(ffn), E, **options)
        torch.testing.assert_close(layer(x), ffn(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gate", ["straight_through", "softmax"])
@ROUTINGS
@EVERY_KIND
def test_residual_experts_leave_the_output_to_the_shared_one_and_learn_from_the_first_step(kind, routing, gate):
    torch.manual_seed(0)
    ffn, x = make_ffn(kind, norm=True), images()
    layer = upcycled(copy.deepcopy(ffn), top_k=2, routing=routing, gate=gate, init="residual")
    assert torch.equal(layer(x), ffn(x))
    layer(x).square().sum().backward()
    assert layer.experts.fc2.weight.grad.abs().max() > 0
    torch.optim.SGD(layer.parameters(), lr=1e-3).step()
    layer(x).square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 0


@ROUTINGS
def test_noise_and_training_leave_the_preserved_output_alone(routing):
    torch.manual_seed(0)
    ffn = make_ffn()
    layer = upcycled(copy.deepcopy(ffn), E, top_k=2, routing=routing, router_noise=True).train()
    torch.testing.assert_close(layer(images()), ffn(images()), rtol=1e-6, atol=1e-6)


def test_plain_copies_with_softmax_gates_are_not_meant_to_preserve():
    torch.manual_seed(0)
    ffn = make_ffn()
    x = images()
    layer = upcycled(copy.deepcopy(ffn), E, init="copy", gate="softmax")
    chosen = layer(x)
    gates = layer.last_selection.gates[:, :, None]
    torch.testing.assert_close(chosen, ffn(x) * (1 + gates), rtol=1e-5, atol=1e-5)
    assert (chosen - ffn(x)).abs().max() > 0.1


@pytest.mark.parametrize("gate", ["straight_through", "softmax"])
@pytest.mark.parametrize("k", [1, 3])
@ROUTINGS
def test_the_output_is_the_gated_sum_of_the_chosen_experts_and_the_shared_one(routing, k, gate):
    layer = make_layer(top_k=k, routing=routing, gate=gate)
    x = images()
    y = layer(x)
    ids, gates, *_ = layer.last_selection
    wanted = layer.shared_expert(x).detach().clone()
    for b, t in torch.cartesian_prod(torch.arange(5), torch.arange(4)).tolist():
        selection = b if routing == "image" else 4 * b + t
        for expert, weight in zip(ids[selection].tolist(), gates[selection].tolist(), strict=True):
            ffn = layer.experts.to_ffn(nn.functional.one_hot(torch.tensor(expert), E))
            wanted[b, t] += weight * ffn(x[b, t]).detach()
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)


@EVERY_KIND
@pytest.mark.parametrize("gate", ["straight_through", "softmax"])
@ROUTINGS
def test_all_backends_agree_through_the_whole_layer(routing, gate, kind):
    layer = make_layer(make_ffn(kind, norm=True), top_k=2, routing=routing, gate=gate).double()
    x = images(dtype=torch.float64)
    layer.experts.backend = "reference"
    wanted = layer_results(layer, x)
    for backend in ("loop", "dense"):
        layer.experts.backend = backend
        assert_same(layer_results(layer, x), wanted, tolerance=1e-11)
    layer.float().experts.backend = "grouped"
    for name, found in layer_results(layer, x.float()).items():
        assert (found - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name


@ROUTINGS
def test_the_gradient_through_router_and_experts_is_that_of_finite_differences(routing):
    layer = make_layer(make_ffn(dim=3, hidden=4), 3, top_k=2, routing=routing, gate="softmax", backend="loop").double()
    names = [name for name, _ in layer.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    x = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@ROUTINGS
def test_with_one_expert_chosen_the_task_still_teaches_the_router(routing):
    layer = make_layer(routing=routing)
    layer(images()).square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 0


@EVERY_BACKEND
@ROUTINGS
def test_an_empty_batch_goes_forward_and_backward(routing, backend):
    layer = make_layer(top_k=2, routing=routing, backend=backend)
    x = images(batch=0).requires_grad_()
    y = layer(x)
    assert y.shape == x.shape
    (y.sum() + balance_loss(layer)).backward()
    assert x.grad.shape == x.shape
    for name, parameter in layer.named_parameters():
        if backend == "reference" and name.startswith("experts"):
            continue
        assert parameter.grad.abs().max() == 0, name


@pytest.mark.parametrize("backend", ["loop", "grouped", "dense"])
@ROUTINGS
def test_every_parameter_has_a_gradient_even_when_one_input_meets_many_experts(routing, backend):
    layer = make_layer(num_experts=8, routing=routing, backend=backend)
    layer(images(batch=1, tokens=1)).sum().backward()
    assert [name for name, parameter in layer.named_parameters() if parameter.grad is None] == []


@property_test
@given(data=st.data())
def test_permuting_the_images_permutes_the_output(data):
    num_experts = data.draw(st.integers(1, 5))
    options = {
        "top_k": data.draw(st.integers(1, num_experts)),
        "routing": data.draw(st.sampled_from(["image", "token"])),
        "gate_input": data.draw(st.sampled_from(["cls", "mean"])),
        "backend": data.draw(st.sampled_from(["reference", "loop", "dense"])),
    }
    layer = make_layer(num_experts=num_experts, **options).double().eval()
    x = images(data.draw(st.integers(1, 5)), data.draw(st.integers(2, 4)), data.draw(st.integers(0, 99)), torch.float64)
    permutation = torch.tensor(data.draw(st.permutations(range(len(x)))))
    torch.testing.assert_close(layer(x[permutation]), layer(x)[permutation], rtol=1e-12, atol=1e-12)


def test_in_single_precision_too_permuting_the_images_permutes_the_output():
    layer, x = make_layer(top_k=2, routing="token"), images(16)
    permutation = torch.randperm(16)
    torch.testing.assert_close(layer(x[permutation]), layer(x)[permutation], rtol=1e-6, atol=1e-5)


def test_under_token_routing_permuting_the_tokens_permutes_the_output():
    layer, x = make_layer(top_k=2, routing="token").double(), images(dtype=torch.float64)
    permutation = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(layer(x[:, permutation]), layer(x)[:, permutation], rtol=1e-12, atol=1e-12)


@property_test
@given(data=st.data())
def test_every_input_is_assigned_k_times(data):
    num_experts = data.draw(st.integers(1, 6))
    k = data.draw(st.integers(1, num_experts))
    routing = data.draw(st.sampled_from(["image", "token"]))
    layer = make_layer(num_experts=num_experts, top_k=k, routing=routing)
    batch, tokens = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 4))
    layer(images(batch, tokens))
    ids, gates, probs, logits, noise = layer.last_selection
    selections = batch if routing == "image" else batch * tokens
    assert ids.shape == gates.shape == (selections, k)
    assert probs.shape == logits.shape == (selections, num_experts)
    assert noise is None
    assert torch.bincount(ids.flatten(), minlength=num_experts).sum() == selections * k


# What the router sees


def test_under_image_routing_the_class_token_decides_alone():
    layer = make_layer(gate_input="cls", num_prefix_tokens=3)
    x = images(tokens=6)
    layer(x)
    torch.testing.assert_close(layer.last_selection.logits, x[:, 0] @ layer.router.weight.T)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_under_image_routing_the_mean_is_that_of_the_patches_without_prefix_tokens(prefix):
    layer = make_layer(gate_input="mean", num_prefix_tokens=prefix)
    x = images(tokens=6)
    layer(x)
    torch.testing.assert_close(layer.last_selection.logits, x[:, prefix:].mean(1) @ layer.router.weight.T)


def test_the_mean_of_half_precision_patches_is_taken_in_fp32():
    layer = make_layer(gate_input="mean").to(torch.float16)
    x = (images(tokens=400) * 100 + 300).to(torch.float16)  # a sum of these would be far beyond what fp16 holds
    layer(x)
    wanted = x[:, 1:].float().mean(1) @ layer.router.weight.float().T
    torch.testing.assert_close(layer.last_selection.logits, wanted, rtol=1e-5, atol=1e-3)


def test_under_token_routing_prefix_tokens_are_routed_like_all_others():
    layer = make_layer(routing="token", num_prefix_tokens=2)
    x = images()
    layer(x)
    torch.testing.assert_close(layer.last_selection.logits, x.flatten(0, 1) @ layer.router.weight.T)


# What is refused


@pytest.mark.parametrize("shape", [(4, D), (2, 3, 4, D), (D,)])
def test_an_input_of_another_rank_is_refused_with_its_shape(shape):
    with pytest.raises(UserError, match=r"an MoE layer takes \[batch, tokens, width\], got a shape of \("):
        make_layer()(torch.zeros(shape))


@pytest.mark.parametrize(("gate_input", "tokens"), [("cls", 0), ("mean", 0), ("mean", 2)])
def test_an_input_without_a_token_to_route_by_is_refused_rather_than_nan(gate_input, tokens):
    layer = make_layer(gate_input=gate_input, num_prefix_tokens=2)
    with pytest.raises(
        UserError, match=f"no token to route by: {tokens} tokens, '{gate_input}' routing needs more than"
    ):
        layer(images(tokens=tokens))


# Precision


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@EVERY_KIND
@ROUTINGS
def test_under_autocast_nothing_is_nan_and_the_router_stays_in_fp32(routing, kind, half):
    layer = make_layer(make_ffn(kind, norm=True), top_k=2, routing=routing)
    found = {}
    for backend in ("loop", "grouped"):
        layer.experts.backend = backend
        layer.zero_grad()
        x = images().requires_grad_()
        with torch.autocast("cpu", dtype=half):
            y = layer(x)
            loss = y.float().square().mean() + 0.01 * balance_loss(layer)
        loss.backward()
        assert {value.dtype for value in layer.last_selection[1:4]} == {torch.float32}
        assert y.dtype == half
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        found[backend] = {"output": y.detach().float(), "x": x.grad, **gradients}
        for name, value in found[backend].items():
            assert value.isfinite().all(), name
    for name, value in found["loop"].items():
        assert (found["grouped"][name] - value).norm() <= 0.02 * value.norm(), name


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@EVERY_BACKEND
@ROUTINGS
def test_a_model_cast_wholly_to_half_precision_works(routing, backend, half):
    layer = make_layer(top_k=2, routing=routing, backend=backend).to(half)
    x = images().to(half).requires_grad_()
    y = layer(x)
    assert y.dtype == half
    assert {value.dtype for value in layer.last_selection[1:4]} == {torch.float32}
    (y.float().square().mean() + balance_loss(layer)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert x.grad.isfinite().all()


def test_the_layer_takes_device_and_precision_of_the_ffn():
    layer = upcycled(make_ffn().to(torch.bfloat16), E)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in upcycled(make_ffn().to("meta"), E).parameters()} == {"meta"}


@EVERY_BACKEND
@ROUTINGS
def test_the_meta_device_gives_shapes(routing, backend):
    layer = make_layer(routing=routing, top_k=2, backend=backend).to("meta")
    assert layer(images().to("meta")).shape == (5, 4, D)


# Repeatability


@EVERY_BACKEND
@ROUTINGS
def test_the_same_input_gives_the_same_bits(routing, backend):
    layer = make_layer(make_ffn(norm=True), top_k=2, routing=routing, backend=backend)
    assert_same(layer_results(layer, images()), layer_results(layer, images()))


@pytest.mark.parametrize("what", ["dropout", "router noise"])
def test_training_randomness_follows_the_seed_and_ends_in_evaluation(what):
    noise = what == "router noise"
    layer = make_layer(make_ffn(drop=0.0 if noise else 0.3), top_k=2, routing="token", router_noise=noise)

    def run(seed):
        torch.manual_seed(seed)
        return layer_results(layer, images())

    assert_same(run(1), run(1))
    assert not torch.equal(run(1)["output"], run(2)["output"])
    layer.eval()
    assert_same(run(1), run(2))


# Copies and state


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "inner norm"])
def test_the_state_is_experts_router_and_shared_expert_and_nothing_else(norm):
    ffn = make_ffn(norm=norm)
    names = set(ffn.state_dict())
    layer = upcycled(ffn, E, router_noise=True)
    layer(images()).sum().backward()
    wanted = {f"{part}.{name}" for part in ("experts", "shared_expert") for name in names} | {"router.weight"}
    assert set(layer.state_dict()) == wanted
    assert not list(layer.buffers())


def test_a_state_goes_into_another_layer_and_gives_the_same_bits():
    first, second = make_layer(top_k=2), make_layer(top_k=2)
    randomize(second)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(images()), second(images()))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_after_a_forward_with_gradient_leaves_the_selection_behind(copier):
    layer = make_layer(top_k=2)
    y = layer(images())
    copied = copier(layer)
    assert copied.last_selection is None
    assert layer.last_selection.probs.requires_grad
    assert torch.equal(copied(images()), y)
    balance_loss(layer).backward()


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_trains_when_the_ffn_it_replaces_does(training):
    layer = upcycled(make_ffn(drop=0.5).train(training), E, router_noise=True)
    assert {module.training for module in layer.modules()} == {training}


def test_the_ffn_itself_becomes_the_shared_expert():
    ffn = make_ffn()
    assert upcycled(ffn, E).shared_expert is ffn
    assert upcycled(make_ffn(), E, shared_expert=False).shared_expert is None


def test_a_printed_layer_says_how_it_routes():
    text = repr(make_layer(routing="token", gate_input="mean", num_prefix_tokens=5))
    assert "routing=token, gate_input=mean, num_prefix_tokens=5" in text


# Activation checkpointing


class Blocks(nn.Module):
    """Two residual blocks, optionally checkpointed as timm does it."""

    def __init__(self, routing: str, reentrant: bool | None = None, **options: object) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(
            make_layer(make_ffn(drop=0.1), top_k=2, routing=routing, router_noise=True, **options) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            y = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
            x = x + 0.1 * y
        return x


@pytest.mark.parametrize("backend", ["loop", "grouped"])
@ROUTINGS
def test_checkpointing_chooses_the_same_experts_again_and_counts_the_loss_once(routing, backend):
    runs = []
    for reentrant in (None, False):
        model = Blocks(routing, reentrant, backend=backend)
        x = images().requires_grad_()
        torch.manual_seed(7)
        y = model(x)
        selections = [block.last_selection for block in model.blocks]
        balance = balance_loss(model)
        (y.square().sum() + balance).backward()
        assert [block.last_selection for block in model.blocks] == selections
        assert all(block.last_selection is kept for block, kept in zip(model.blocks, selections, strict=True))
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        runs.append({"output": y.detach(), "balance": balance.detach(), "x": x.grad, **gradients})
    assert_same(*runs)


def test_checkpointing_gives_the_balance_loss_alone_its_gradient():
    gradients = []
    for reentrant in (None, False):
        model = Blocks("token", reentrant)
        torch.manual_seed(7)
        model(images())
        balance_loss(model).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_same(*gradients)


def test_a_checkpointed_forward_computed_again_is_no_further_run():
    model = Blocks("token", False)
    for _ in range(2):
        loss = model(images()).square().sum() + balance_loss(model)
        loss.backward()
    assert {block.uncounted for block in model.blocks} == {0}


def test_a_later_forward_counts_again_after_checkpointing():
    model = Blocks("image", False)
    model(images()).sum().backward()
    kept = model.blocks[0].last_selection
    model(images(batch=3))
    assert model.blocks[0].last_selection is not kept
    assert len(model.blocks[0].last_selection.expert_ids) == 3


def test_reentrant_checkpointing_is_refused_before_it_trains_without_balance():
    model = Blocks("image", True)
    model(images().requires_grad_())
    with pytest.raises(
        UserError, match=r"left no gradient for the router: .* checkpoint activations with use_reentrant=False"
    ):
        balance_loss(model)


# Compilers

# At a graph break dynamo itself looks at `.grad` of the tensors it hands over, and hides the warning only when
# warnings are not errors.
DYNAMO_LOOKS_AT_GRAD = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


# torch.compile knows the shapes of `grouped_mm` in 16 bits; in fp32 from torch 2.15 on.
HALF_OF = {"grouped": torch.bfloat16}


def with_balance(run, layer: MoELayer, x: torch.Tensor) -> dict[str, torch.Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    balance = balance_loss(layer)
    (y.square().sum() + balance).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    return {"output": y.detach(), "balance": balance.detach(), "x": x.grad, **gradients}


@DYNAMO_LOOKS_AT_GRAD
@pytest.mark.parametrize(("backend", "whole"), [("grouped", True), ("dense", True), ("loop", False)])
@ROUTINGS
def test_a_compiled_layer_equals_the_eager_one(routing, backend, whole):
    torch._dynamo.reset()
    dtype = HALF_OF.get(backend, torch.float32)
    layer = make_layer(make_ffn(norm=True), top_k=2, routing=routing, backend=backend).to(dtype)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=whole)
    for batch in (5, 3):  # a second size recompiles
        wanted = with_balance(layer, layer, images(batch, dtype=dtype))
        assert_same(with_balance(compiled, layer, images(batch, dtype=dtype)), wanted, tolerance=1e-6)


@DYNAMO_LOOKS_AT_GRAD
def test_in_single_precision_too_a_compiled_grouped_layer_equals_the_eager_one():
    torch._dynamo.reset()
    layer = make_layer(make_ffn(norm=True), top_k=2, backend="grouped")
    wanted = with_balance(layer, layer, images())
    assert_same(with_balance(torch.compile(layer, backend="aot_eager"), layer, images()), wanted, tolerance=1e-5)


@DYNAMO_LOOKS_AT_GRAD
@pytest.mark.parametrize(("backend", "breaks"), [("grouped", 0), ("dense", 0), ("loop", 1)])
def test_only_the_loop_breaks_the_graph_and_only_once(backend, breaks):
    torch._dynamo.reset()
    dtype = HALF_OF.get(backend, torch.float32)
    layer = make_layer(top_k=2, backend=backend).to(dtype)
    explained = torch._dynamo.explain(layer)(images(dtype=dtype))
    assert explained.graph_break_count == breaks
    assert explained.graph_count == breaks + 1
    assert [reason.user_stack[-1].name for reason in explained.break_reasons] == ["compute_experts"] * breaks


@DYNAMO_LOOKS_AT_GRAD
@pytest.mark.parametrize(
    ("options", "breaks"),
    [
        ({"balance": "bias", "backend": "dense"}, 0),
        ({"router": "prioritised", "backend": "dense"}, 0),
        ({"router": "prioritised", "backend": "grouped"}, 1),
        ({"router": "expert_choice", "backend": "grouped"}, 1),
    ],
)
def test_only_a_number_that_the_host_must_know_breaks_the_graph_and_other_numbers_compile_nothing(options, breaks):
    torch._dynamo.reset()
    layer = make_layer(routing="token", **options).to(torch.bfloat16).train()
    assert torch._dynamo.explain(layer)(images(dtype=torch.bfloat16)).graph_break_count == breaks
    torch._dynamo.reset()
    graphs = []
    run = torch.compile(layer, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for seed in range(4):
        layer.router.assigned = None  # as after each step
        x = images(seed=seed, dtype=torch.bfloat16)
        torch.testing.assert_close(run(x), layer(x))
    assert len(graphs) == breaks + 1


@DYNAMO_LOOKS_AT_GRAD
@pytest.mark.parametrize(("backend", "graphs"), [("grouped", 1), ("dense", 1), ("loop", 2)])
def test_other_choices_of_experts_do_not_compile_again(backend, graphs):
    torch._dynamo.reset()
    compiled = []
    dtype = HALF_OF.get(backend, torch.float32)
    layer = make_layer(make_ffn(norm=True), top_k=2, backend=backend).to(dtype)
    run = torch.compile(layer, backend=lambda graph, _: compiled.append(graph) or graph.forward)
    for seed in range(4):
        x = images(seed=seed, dtype=dtype)
        torch.testing.assert_close(run(x), layer(x), rtol=1e-6, atol=1e-6)
    assert len(compiled) == graphs


@DYNAMO_LOOKS_AT_GRAD
def test_a_compiled_model_with_checkpointed_blocks_equals_the_eager_one():
    # Dynamo runs a checkpointed block that keeps something (here the selection) as eager code.
    torch._dynamo.reset()
    model = Blocks("token", False, backend="grouped")
    compiled = torch.compile(model, backend="aot_eager")
    runs = []
    for run in (model, compiled):
        torch.manual_seed(7)
        model.zero_grad()
        y = run(images())
        (y.square().sum() + balance_loss(model)).backward()
        runs.append({"output": y.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()})
    assert_same(*runs)


class Model(nn.Module):
    """Something around the layer, as a model has it."""

    def __init__(self, routing: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(D, D)
        self.moe = make_layer(make_ffn(norm=True), top_k=2, routing=routing)
        self.head = nn.Linear(D, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head((x + self.moe(x)).mean(1))


@pytest.mark.parametrize("strict", [False, True])
@ROUTINGS
def test_an_exported_model_equals_the_eager_one_for_every_batch_size(routing, strict):
    torch._dynamo.reset()
    model = Model(routing).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},), strict=strict)
    for size in (5, 2, 9):
        torch.testing.assert_close(program.module()(images(size)), model(images(size)), rtol=1e-5, atol=1e-5)
    assert not any("grouped_mm" in str(node.target) or "sort" in str(node.target) for node in program.graph.nodes)


def test_exporting_leaves_the_last_selection_as_it_was():
    model = Model("image").eval()
    torch.export.export(model, (images(),), strict=False)
    assert model.moe.last_selection is None
    model(images())
    kept = model.moe.last_selection
    torch.export.export(model, (images(),), strict=False)
    assert all(torch.equal(now, before) for now, before in zip(model.moe.last_selection[:4], kept[:4], strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@EVERY_BACKEND
@ROUTINGS
def test_a_traced_model_is_right_for_inputs_that_choose_other_experts(routing, backend):
    model = Model(routing).eval()
    model.moe.experts.backend = backend
    traced = torch.jit.trace(model, (images(seed=0),), check_trace=False)
    assert model.moe.last_selection is None
    for seed in range(1, 4):
        x = images(batch=4 + seed, seed=seed)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-5)
