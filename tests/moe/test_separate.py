"""Experts as modules of their own compute what stacked ones do, and tools that go by module type reach them."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import vimoe
from vimoe.errors import UserError
from vimoe.moe.experts import Experts
from vimoe.moe.layer import moe_modules
from vimoe.moe.separate import separate, stack
from vimoe.vit.ffn_names import with_timm_names

IMAGES, LABELS = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def make(name: str = "vit_tiny_patch16_224", **settings: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, embed_dim=48, depth=3, num_heads=3, num_classes=4)
    vimoe.upcycle(model, last=2, **{"num_experts": 4, **settings})
    for layer in moe_modules(model).values():
        for parameter in layer.experts.parameters():
            nn.init.normal_(parameter, std=0.1)  # experts that differ
    return model.eval()


def gradients(model: Any, images: Tensor) -> dict[str, Tensor]:
    model.train()
    loss = cross_entropy(model(images), LABELS)
    chooses = next(iter(moe_modules(model).values())).last_selection is not None
    (loss + 0.01 * vimoe.balance_loss(model) if chooses else loss).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {"routing": "image"}),
        ("vit_tiny_patch16_224", {"routing": "token", "top_k": 2}),
        ("vit_tiny_patch16_224", {"routing": "token", "router": "soft", "shared_expert": False}),
        ("vit_tiny_patch16_224", {"routing": "token", "router": "prioritised", "capacity": 0.5}),
        ("vit_tiny_patch16_224", {"routing": "token", "shared_expert": False, "preset": "paper"}),
        ("eva02_tiny_patch14_224", {"routing": "token"}),
    ],
)
def test_outputs_gradients_and_the_way_back_are_those_of_stacked_experts(name: str, settings: dict[str, Any]) -> None:
    size = {"eva02_tiny_patch14_224": 28}.get(name, 32)
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size, num_classes=4).double()
    vimoe.upcycle(model, last=2, num_experts=4, **settings)
    images = IMAGES[..., :size, :size].double()
    model.eval()
    before, state = model(images).detach(), {k: v.clone() for k, v in model.state_dict().items()}
    expected = gradients(model, images)
    model.zero_grad()
    assert separate(model) is model
    torch.testing.assert_close(model.eval()(images), before)
    got = gradients(model, images)
    for path, gradient in expected.items():
        owner, found, part = path.partition(".experts.")
        none = torch.zeros_like(gradient[0])  # of an expert that nothing went to
        value = torch.stack([got.get(f"{owner}.experts.{e}.{part}", none) for e in range(4)]) if found else got[path]
        torch.testing.assert_close(value, gradient)
    again = stack(model).state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_an_expert_that_nobody_chose_has_no_gradient_and_an_empty_batch_passes() -> None:
    model = separate(make(routing="token"))
    assert model(IMAGES[:0]).shape == (0, 4)
    layer = next(iter(moe_modules(model).values()))
    x, ids, gates = torch.randn(3, 2, 48), torch.tensor([[1], [1], [2]]), torch.ones(3, 1)
    layer.experts(x, ids, gates).sum().backward()
    assert [ffn.fc1.weight.grad is not None for ffn in layer.experts] == [False, True, True, False]


def test_what_was_taken_apart_keeps_dropout_and_frozen_weights_and_is_saved_when_stacked(tmp_path: Any) -> None:
    model = make(expert_dropout=0.3, routing="token")
    for layer in moe_modules(model).values():
        layer.experts.fc1.weight.requires_grad_(False)
    before = model(IMAGES)
    separate(model)
    layer = next(iter(moe_modules(model).values()))
    assert [ffn.drop1.p for ffn in layer.experts] == [0.3] * 4
    assert not any(ffn.fc1.weight.requires_grad for ffn in layer.experts)
    model.train()
    assert layer.experts[0].training
    with pytest.raises(UserError):
        vimoe.save(model, tmp_path / "apart")
    stack(model.eval())
    experts: Any = next(iter(moe_modules(model).values())).experts
    assert (experts.drop1.p, experts.fc1.weight.requires_grad) == (0.3, False)
    vimoe.save(model, tmp_path / "model")
    torch.testing.assert_close(vimoe.load(tmp_path / "model")(IMAGES), before)


def test_routing_is_recorded_as_before() -> None:
    model = make(routing="token")
    with vimoe.record_routing(model) as record:
        model(IMAGES)
    separate(model)
    with vimoe.record_routing(model) as again:
        model(IMAGES)
    assert all(torch.equal(again.expert_ids[number], ids) for number, ids in record.expert_ids.items())


@pytest.mark.parametrize("settings", [{"granularity": 2}, {"expert_rank": 2}])
def test_what_is_no_whole_expert_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="only whole stacked experts"):
        separate(make(**settings))
    with pytest.raises(UserError, match="no MoE layer"):
        separate(nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore")  # of its own
def test_lora_by_module_name_adapts_every_expert() -> None:
    peft = pytest.importorskip("peft")
    model = separate(make(routing="token"))
    start = model(IMAGES).detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["fc1", "fc2"]))
    torch.testing.assert_close(adapted(IMAGES), start)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        gradients(adapted, IMAGES)
        optimizer.step()
    moved = [n for n, p in adapted.named_parameters() if "lora_B" in n and ".experts." in n and p.abs().max() > 0]
    assert {name.split(".experts.")[1][0] for name in moved} == {"0", "1", "2", "3"}
    after = adapted.eval()(IMAGES).detach()
    with pytest.raises(UserError, match="cannot become experts"):
        stack(adapted)
    merged = stack(adapted.merge_and_unload())
    torch.testing.assert_close(merged(IMAGES), after)
    assert isinstance(next(iter(moe_modules(merged).values())).experts, Experts)


@pytest.mark.filterwarnings("ignore")  # torch's advertisement of torchao
def test_torchs_dynamic_quantisation_reaches_every_expert() -> None:
    layer = next(iter(moe_modules(separate(make(routing="token"))).values()))
    x = torch.randn(4, 5, 48, generator=torch.Generator().manual_seed(1))
    expected = layer(x)
    quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    kinds = [type(module) for module in quantised.experts.modules()]
    assert kinds.count(torch.ao.nn.quantized.dynamic.Linear) == 2 * 4
    assert nn.Linear not in kinds
    assert 0 < (quantised(x) - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_way_back_keeps_the_backend_and_optimisers_decay_the_same_weights() -> None:
    model = make(routing="token", backend="dense")
    for _ in range(2):
        held_back = [name for name in model.no_weight_decay() if ".experts." in name]
        assert held_back
        assert all(name.endswith("bias") for name in held_back)
        separate(model) if isinstance(next(iter(moe_modules(model).values())).experts, Experts) else None
    stack(model)
    assert {layer.experts.backend for layer in moe_modules(model).values()} == {"dense"}


class TheirFFN(nn.Module):
    """An FFN with transformers' names."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.act_fn, self.down_proj = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)


def test_an_ffn_under_timms_names_drops_what_experts_drop() -> None:
    ffn = with_timm_names(TheirFFN())
    ffn.drop1 = nn.Dropout(1.0)
    x = torch.randn(3, 8)
    assert ffn.train()(x).equal(ffn.fc2.bias.expand(3, 8))
    assert not ffn.eval()(x).equal(ffn.fc2.bias.expand(3, 8))


def test_experts_that_were_taken_apart_are_not_pruned() -> None:
    model = separate(make())
    for keep in ([], [0, 1]):
        with pytest.raises(UserError, match=r"are separate: call vimoe\.stack first"):
            vimoe.prune(model, {2: keep})
