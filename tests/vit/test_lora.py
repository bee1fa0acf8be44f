import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.vit.families import BY_NAME, assert_same_state, run
from vimoe.errors import UserError
from vimoe.vit.checkpoint import load, save
from vimoe.vit.lora import LoRALinear, add_lora, has_lora, lora_rank, merge_lora

NAMES = ("vit_tiny_patch16_224", "vit_giant_patch14_dinov2", "vit_small_patch16_dinov3", "beit_base_patch16_224")


def differing(name: str, rank: int = 4) -> tuple[nn.Module, nn.Module]:
    """A model before, and with differences that are not 0."""
    plain = BY_NAME[name].make()
    model = add_lora(copy.deepcopy(plain), rank)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.up, std=0.1)
    return plain, model


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_the_model_and_every_difference_counts_and_learns(name: str) -> None:
    plain, model = differing(name)
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    assert not torch.allclose(run(model, images), run(plain, images), atol=1e-3)
    model(images).square().sum().backward()
    loras = [module for module in model.modules() if isinstance(module, LoRALinear)]
    assert len(loras) >= 3 * 3
    assert all(module.up.grad.abs().sum() > 0 and module.down.grad.abs().sum() > 0 for module in loras)
    fresh = add_lora(copy.deepcopy(plain), 4)
    assert torch.equal(run(fresh, images), run(plain, images))


@pytest.mark.parametrize("name", NAMES)
def test_merged_it_is_the_plain_model_of_the_same_function(name: str, tmp_path: Path) -> None:
    plain, model = differing(name)
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    wanted = run(model, images)
    save(model, tmp_path)
    assert has_lora(model)  # saving leaves the model as it is
    assert torch.equal(run(model, images), wanted)
    again = load(tmp_path)
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in plain.state_dict().items()}
    torch.testing.assert_close(run(again, images), wanted, rtol=1e-4, atol=1e-5)
    assert not has_lora(merge_lora(model))
    assert_same_state(model.state_dict(), again.state_dict())


def test_the_folder_is_timms_own(tmp_path: Path) -> None:
    _, model = differing("vit_tiny_patch16_224")
    save(model, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(run(theirs, images), run(load(tmp_path), images))


def test_the_rank_follows_from_the_parameters_and_must_be_low() -> None:
    model = BY_NAME["vit_tiny_patch16_224"].make()
    each = 3 * ((32 + 96) + (32 + 32) + 2 * (32 + 128))  # qkv, proj, fc1, fc2 of three blocks
    assert [lora_rank(model, count) for count in (0, 5 * each, 5 * each + each // 3)] == [1, 5, 5]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="a LoRA rank of 32 is no low rank in a model of width 32"):
        add_lora(model, 32)
    assert_same_state(model.state_dict(), before)
