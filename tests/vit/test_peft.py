"""LoRA of PEFT's on the experts' stacked weights, by the names of the parameters."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import vimoe

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # of its own

IMAGES, LABELS = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
STACKS = ["experts.fc1.weight", "experts.fc2.weight"]


def make(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=3, num_classes=4)
    return vimoe.upcycle(model, last=2, num_experts=4, **{"routing": "token", **settings}).eval()


def with_lora(model: nn.Module, **settings: Any) -> Any:
    lora = {"r": 2, "target_modules": [], "target_parameters": STACKS, **settings}
    return peft.get_peft_model(model, peft.LoraConfig(**lora))


def trained(model: Any) -> Tensor:
    """Two steps, since the first one moves one half of each adapter alone; the outputs after them."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        (cross_entropy(model(IMAGES), LABELS) + 0.01 * vimoe.balance_loss(model)).backward()
        optimizer.step()
    return model.eval()(IMAGES).detach()


@pytest.mark.parametrize("routing", ["image", "token"])
def test_adapters_alone_learn_and_merge_into_the_experts(routing: str, tmp_path: Path) -> None:
    model = make(routing=routing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = model(IMAGES).detach()
    adapted = with_lora(model)
    torch.testing.assert_close(adapted(IMAGES), start)
    after = trained(adapted)
    assert (after - start).abs().max() > 1e-3
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(IMAGES), after)
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith(tuple(STACKS))}
    vimoe.save(merged, tmp_path)
    torch.testing.assert_close(vimoe.load(tmp_path)(IMAGES), after)


def test_every_backend_trains_the_same_adapters() -> None:
    loop, *others = (trained(with_lora(make(backend=way))) for way in ("loop", "grouped", "gathered", "dense"))
    for other in others:
        torch.testing.assert_close(other, loop, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_saved_without_the_model(tmp_path: Path) -> None:
    adapted = with_lora(make())
    after = trained(adapted)
    adapted.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 60_000
    again = peft.PeftModel.from_pretrained(make(), tmp_path)
    torch.testing.assert_close(again.eval()(IMAGES), after)


def test_attention_and_experts_are_adapted_together() -> None:
    adapted = with_lora(make(), target_modules=["qkv"])
    trained(adapted)
    moved = [name for name, p in adapted.named_parameters() if "lora_B" in name and p.abs().max() > 0]
    assert len(moved) == 3 + 2 * len(STACKS)  # every block's qkv, two stacks of two layers


def test_stacked_maps_are_no_linear_modules_to_peft() -> None:
    with pytest.raises(ValueError, match="Stacked"):
        with_lora(make(), target_modules=["experts.fc1"], target_parameters=None)
