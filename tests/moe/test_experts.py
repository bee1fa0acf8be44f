"""Experts as copies of an FFN: what is taken over, what is refused, and the way back to an FFN."""

import copy
import pickle

import pytest
import torch
from timm.layers import ConvMlp, GatedMlp, GlobalResponseNormMlp, Mlp, QuickGELU, RmsNorm
from torch import nn

from vimoe.errors import UserError
from vimoe.moe.experts import Experts

from .support import BACKENDS, KINDS, D, E, H, make_experts, make_ffn

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
NORM = pytest.mark.parametrize("norm", [False, True], ids=["plain", "inner norm"])
BIAS = pytest.mark.parametrize("bias", [False, True, (True, False)], ids=["no bias", "bias", "bias of fc1 only"])


def ask_one(experts: Experts, x: torch.Tensor, expert: int) -> torch.Tensor:
    return experts(x, torch.full((len(x), 1), expert), torch.ones(len(x), 1))


@pytest.mark.parametrize("backend", BACKENDS)
@NORM
@BIAS
@EVERY_KIND
def test_every_expert_starts_as_the_ffn(kind, bias, norm, backend):
    ffn = make_ffn(kind, bias=bias, norm=norm)
    experts = Experts(ffn, E, backend=backend)
    x = torch.randn(3, 2, D)
    for expert in range(E):
        torch.testing.assert_close(ask_one(experts, x, expert), ffn(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [QuickGELU, nn.ReLU, nn.Hardswish, nn.GELU])
@EVERY_KIND
def test_the_activation_is_taken_over(kind, activation):
    ffn = make_ffn(kind, act_layer=activation)
    x = torch.randn(3, 2, D)
    experts = Experts(ffn, E)
    assert type(experts.act) is activation
    torch.testing.assert_close(ask_one(experts, x, 1), ffn(x), rtol=1e-5, atol=1e-5)


def test_dropout_rates_are_taken_over():
    experts = Experts(make_ffn(drop=(0.1, 0.3)), E)
    assert (experts.drop1.p, experts.drop2.p) == (0.1, 0.3)


@EVERY_KIND
def test_both_dropouts_work_where_the_ffn_has_them(kind):
    x = torch.randn(3, 2, D)
    inner = make_experts(kind, drop=(1.0, 0.0))
    assert torch.equal(ask_one(inner, x, 1), inner.fc2.bias[1].expand(3, 2, D))  # only the last bias is left
    assert not ask_one(make_experts(kind, drop=(0.0, 1.0)), x, 1).any()


@pytest.mark.parametrize("training", [True, False])
def test_experts_train_when_their_ffn_does(training):
    experts = Experts(make_ffn(drop=0.5, norm=True).train(training), E)
    assert {module.training for module in experts.modules()} == {training}


def test_an_inner_norm_keeps_its_epsilon():
    ffn = make_ffn(norm=True)
    ffn.norm.eps = 0.5
    x = torch.randn(3, 2, D)
    torch.testing.assert_close(ask_one(Experts(ffn, E), x, 1), ffn(x), rtol=1e-5, atol=1e-5)


def test_a_norm_without_parameters_is_taken_over():
    ffn = make_ffn()
    ffn.norm = nn.LayerNorm(H, elementwise_affine=False)
    x = torch.randn(3, 2, D)
    torch.testing.assert_close(ask_one(Experts(ffn, E), x, 1), ffn(x), rtol=1e-5, atol=1e-5)


def test_an_ffn_without_dropout_modules_is_taken():
    ffn = make_ffn()
    del ffn.drop1, ffn.drop2, ffn.norm
    experts = Experts(ffn, E)
    x = torch.randn(3, 2, D)
    wanted = ffn.fc2(ffn.act(ffn.fc1(x)))
    torch.testing.assert_close(ask_one(experts, x, 1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scale_is_a_factor_on_the_output_biases_included(backend):
    ffn = make_ffn("swiglu", norm=True)
    x = torch.randn(3, 2, D)
    experts = Experts(ffn, E, scale=0.25, backend=backend)
    torch.testing.assert_close(ask_one(experts, x, 2), ffn(x) / 4, rtol=1e-5, atol=1e-5)


def test_parameters_are_stacked_under_the_names_of_the_ffn():
    shapes = {name: tuple(parameter.shape) for name, parameter in Experts(make_ffn(norm=True), E).named_parameters()}
    assert shapes == {
        "fc1.weight": (E, H, D),
        "fc1.bias": (E, H),
        "norm.weight": (E, H),
        "norm.bias": (E, H),
        "fc2.weight": (E, D, H),
        "fc2.bias": (E, D),
    }


@BIAS
@NORM
@EVERY_KIND
def test_the_state_holds_the_names_of_the_ffn_and_no_others(kind, norm, bias):
    ffn = make_ffn(kind, bias=bias, norm=norm)
    assert Experts(ffn, E).state_dict().keys() == ffn.state_dict().keys()


def test_copies_do_not_share_memory_with_the_ffn_or_each_other():
    ffn = make_ffn()
    before = copy.deepcopy(ffn.state_dict())
    experts = Experts(ffn, E)
    with torch.no_grad():
        experts.fc1.weight[0] += 1
    assert torch.equal(experts.fc1.weight[1], before["fc1.weight"])
    assert torch.equal(ffn.fc1.weight, before["fc1.weight"])


def test_frozen_parameters_stay_frozen():
    ffn = make_ffn()
    ffn.fc1.requires_grad_(False)
    experts = Experts(ffn, E)
    assert [name for name, parameter in experts.named_parameters() if parameter.requires_grad] == [
        "fc2.weight",
        "fc2.bias",
    ]
    assert not experts.to_ffn(torch.ones(E)).fc1.weight.requires_grad


@pytest.mark.parametrize(
    "ffn",
    [
        nn.Identity(),
        nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D)),
        ConvMlp(D, H),
        Mlp(D, H, use_conv=True),
        GatedMlp(D, H),
        GlobalResponseNormMlp(D, H),
        Mlp(D, H, norm_layer=RmsNorm),
        Mlp(D, H, act_layer=nn.PReLU),
    ],
    ids=["identity", "sequential", "conv", "conv mlp", "spatial gate", "response norm", "rms norm", "trained act"],
)
def test_an_ffn_of_another_form_is_refused_by_name(ffn):
    with pytest.raises(UserError, match=f"an FFN of type {type(ffn).__name__} cannot become experts: supported are"):
        Experts(ffn, E)


def test_an_unknown_backend_is_answered_with_the_known_ones():
    known = "auto, reference, loop, grouped, dense, gathered"
    with pytest.raises(UserError, match=f"backend must be one of {known}, got 'megablocks'"):
        Experts(make_ffn(), E, backend="megablocks")


@pytest.mark.parametrize("backend", BACKENDS)
@EVERY_KIND
def test_kept_experts_answer_as_before_in_the_order_asked_for(kind, backend):
    experts = make_experts(kind, backend=backend, norm=True)
    x = torch.randn(3, 2, D)
    before = [ask_one(experts, x, expert).detach() for expert in range(E)]
    experts.fc1_x.requires_grad_(False) if kind == "swiglu" else experts.fc1.requires_grad_(False)
    frozen = {name: parameter.requires_grad for name, parameter in experts.named_parameters()}
    experts.keep([3, 1])
    assert experts.num_experts == 2
    assert {len(parameter) for parameter in experts.parameters()} == {2}
    assert {name: parameter.requires_grad for name, parameter in experts.named_parameters()} == frozen
    for new, old in enumerate([3, 1]):
        torch.testing.assert_close(ask_one(experts, x, new), before[old], rtol=1e-5, atol=1e-5)


def test_removed_experts_give_their_memory_back():
    experts = make_experts()
    experts.keep([2])
    for parameter in experts.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


@BIAS
@NORM
@EVERY_KIND
def test_one_hot_weights_give_back_exactly_that_experts_ffn(kind, norm, bias):
    experts = make_experts(kind, norm=norm, bias=bias)
    x = torch.randn(3, 2, D)
    for expert in range(E):
        ffn = experts.to_ffn(nn.functional.one_hot(torch.tensor(expert), E))
        for name, parameter in ffn.named_parameters():
            assert torch.equal(parameter, experts.get_parameter(name)[expert]), name
        torch.testing.assert_close(ffn(x), ask_one(experts, x, expert), rtol=1e-5, atol=1e-5)


def test_a_removed_ffn_is_of_its_old_type_with_nothing_of_ours_in_it():
    ffn = make_ffn("glu_gate_last", drop=0.2, norm=True, act_layer=nn.ReLU).eval()
    back = Experts(ffn, E).to_ffn(torch.tensor([1.0, 0, 0, 0]))
    assert repr(back) == repr(ffn)
    assert back.gate_last
    assert not any(type(module).__module__.startswith("vimoe") for module in back.modules())
    assert {module.training for module in back.modules()} == {False}
    for name, value in ffn.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


def test_weights_average_the_parameters():
    experts = make_experts(norm=True)
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0])
    for name, parameter in experts.to_ffn(weights).named_parameters():
        first, second, third, _ = experts.get_parameter(name)
        torch.testing.assert_close(parameter, first / 2 + second / 4 + third / 4)


def test_the_average_of_equal_copies_is_the_ffn():
    ffn = make_ffn("swiglu_packed", norm=True)
    x = torch.randn(3, 2, D)
    torch.testing.assert_close(Experts(ffn, E).to_ffn(torch.full((E,), 1 / E))(x), ffn(x))


def test_a_new_ffn_is_trainable_and_shares_nothing_with_the_experts():
    experts = make_experts()
    before = copy.deepcopy(experts.state_dict())
    ffn = experts.to_ffn(torch.tensor([0.0, 1, 0, 0]))
    with torch.no_grad():
        for parameter in ffn.parameters():
            assert parameter.is_leaf
            assert parameter.requires_grad
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in experts.state_dict().items())


def test_a_new_ffn_takes_the_experts_precision_and_comes_after_keeping_too():
    experts = make_experts().double()
    wanted = experts.fc1.weight[3].clone()
    experts.keep([1, 3])
    ffn = experts.to_ffn(torch.tensor([0.0, 1.0]))
    assert {parameter.dtype for parameter in ffn.parameters()} == {torch.float64}
    assert torch.equal(ffn.fc1.weight, wanted)


def test_the_form_kept_for_the_way_back_stores_no_weights():
    experts = make_experts()
    (skeleton,) = experts._skeleton
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert sum(1 for _ in experts.parameters()) == 4
    assert len(pickle.dumps(experts)) < 1.3 * sum(4 * parameter.numel() for parameter in experts.parameters()) + 10_000


def test_copies_of_experts_find_the_way_back_too():
    experts = make_experts()
    for copied in (copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
        ffn = copied.to_ffn(torch.tensor([0.0, 1, 0, 0]))
        assert torch.equal(ffn.fc1.weight, experts.fc1.weight[1])


def test_printed_experts_say_how_many_and_how():
    text = repr(make_experts(backend="dense"))
    assert f"num_experts={E}, backend=dense" in text
    assert f"weight=[{E}, {H}, {D}], bias=True" in text
