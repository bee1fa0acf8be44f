import pytest
import torch
from torch.nn import functional as F

from tests.vit.families import BY_NAME, run
from vimoe.errors import UserError
from vimoe.vit.blocks import find_backbone
from vimoe.vit.checkpoint import load, save
from vimoe.vit.deepen import blocks_to_add, deepen

PLAIN = ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224")


@pytest.mark.parametrize("name", [*PLAIN, "vit_base_patch16_clip_224", "vit_base_patch16_siglip_224"])
@pytest.mark.parametrize("hidden", [48, 128, 200])
def test_new_blocks_change_nothing_until_they_learn(name: str, hidden: int) -> None:
    model = BY_NAME[name].make()
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    before = run(model, images)
    deepen(model, [0, 2, 2], hidden)
    assert [block.mlp.fc1.out_features for block in model.blocks] == [128, hidden, 128, 128, hidden, hidden]
    assert torch.equal(run(model, images), before)


def test_every_weight_of_a_new_block_learns() -> None:
    torch.manual_seed(0)
    model = deepen(BY_NAME["vit_tiny_patch16_224"].make(), [1], 160).train()
    before = {name: p.detach().clone() for name, p in model.blocks[2].named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    for _ in range(2):
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(p, before[name]) for name, p in model.blocks[2].named_parameters())
    units = model.blocks[2].mlp.fc1.weight
    assert torch.cdist(units, units).add(torch.eye(len(units))).min() > 1e-3


def test_a_folder_brings_the_blocks_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = deepen(BY_NAME["vit_tiny_patch16_224"].make(), [0, 2], 96)
    torch.nn.init.normal_(model.blocks[1].attn.proj.weight)
    save(model, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(run(load(tmp_path), images), run(model, images))


@pytest.mark.parametrize(("ffns", "last", "where"), [(1.0, 1, [2]), (2.0, 2, [2]), (3.0, 3, [1, 2]), (8.0, 2, None)])
def test_the_blocks_to_add_have_the_size_that_was_asked_for(ffns: float, last: int, where: list[int] | None) -> None:
    model = BY_NAME["vit_tiny_patch16_224"].make()
    after, hidden = blocks_to_add(model, ffns, last)
    assert where is None or after == where
    assert after == sorted(after)
    assert set(after) <= set(range(3 - last, 3))
    before = sum(p.numel() for p in model.parameters())
    added = sum(p.numel() for p in deepen(model, after, hidden).parameters()) - before
    assert added == pytest.approx(ffns * 128 * 65, abs=len(after) * 33)  # half a hidden unit a block


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_giant_patch14_dinov2"])
def test_other_blocks_are_refused_and_left_alone(name: str) -> None:
    model = BY_NAME[name].make()
    with pytest.raises(UserError, match="cannot be deepened"):
        deepen(model, [0], 64)
    assert len(find_backbone(model).blocks) == 3
