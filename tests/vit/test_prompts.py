import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.vit.families import BY_NAME, run
from vimoe.errors import UserError
from vimoe.vit.checkpoint import load, save
from vimoe.vit.cost import cost
from vimoe.vit.prompts import add_prompts


def by_the_paper(model: torch.nn.Module, images: Tensor, prompts: list[Tensor]) -> Tensor:
    """x_i, _, E_i = L_i(x_{i-1}, P_{i-1}, E_{i-1}), prompts between the class token and the patches."""
    x = model._pos_embed(model.patch_embed(images))  # type: ignore[operator]
    for block, tokens in zip(model.blocks, prompts, strict=True):  # type: ignore[arg-type]
        x = torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        x = block(x)
        x = torch.cat([x[:, :1], x[:, 1 + len(tokens) :]], 1)
    return model.forward_head(model.norm(x))  # type: ignore[operator]


@torch.no_grad()
def test_every_block_sees_prompts_of_its_own_as_in_the_paper() -> None:
    plain = BY_NAME["vit_tiny_patch16_224"].make()
    model = add_prompts(copy.deepcopy(plain), 4)
    for block in model.blocks:
        block.prompts.normal_()
    images = torch.randn(2, 3, 32, 32)
    wanted = by_the_paper(plain, images, [block.prompts for block in model.blocks])
    torch.testing.assert_close(run(model, images), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run(plain, images), wanted, atol=1e-3)


def test_prompts_are_counted_copied_saved_and_learn(tmp_path: Path) -> None:
    plain = BY_NAME["vit_small_patch14_reg4_dinov2"].make()
    dense = cost(plain)
    model = add_prompts(plain, 5)
    found = cost(model)
    assert found.stored_params == found.activated_params == dense.stored_params + 3 * 5 * 32
    assert found.macs > dense.macs
    save(model, tmp_path)
    images = torch.randn(2, 3, 28, 28)
    for other in (load(tmp_path), copy.deepcopy(model)):
        assert torch.equal(run(other, images), run(model, images))
    model(images).square().sum().backward()
    assert all(block.prompts.grad.abs().sum() > 0 for block in model.blocks)


def test_blocks_that_place_their_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="EvaBlocks cannot be given prompts"):
        add_prompts(BY_NAME["vit_small_patch16_dinov3"].make(), 5)
