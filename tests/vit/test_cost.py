from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import vimoe
from tests.vit.families import (
    Family,
    Holder,
    assert_unchanged,
    every_family,
    every_routing,
    make,
    refused,
    shared_or_not,
    snapshot,
)

# Table 1 and the derived sizes of the paper


def vit_s14(**settings: Any) -> nn.Module:
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=1000)
    return vimoe.upcycle(model, **settings) if settings else model


@pytest.mark.parametrize(
    ("settings", "activated", "gmacs", "stored"),
    [
        ({}, 22.0, 6.14, None),
        ({"num_experts": 8, "last": 2}, 24.4, 6.74, 40.9),
        ({"num_experts": 8, "last": 12}, 36.2, 9.77, 135.4),
    ],
    ids=["dense", "N=8,L=2", "N=8,L=12"],
)
@every_routing
def test_the_paper_s_table_1_is_reproduced(
    settings: Any, activated: float, gmacs: float, stored: float | None, routing: Any
) -> None:
    model = vit_s14(**settings, routing=routing) if settings else vit_s14()
    cost = vimoe.cost(model, image_size=224)
    assert round(cost.activated_params / 1e6, 1) == activated
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.003)
    if stored is None:
        assert cost.stored_params == cost.activated_params
    else:
        assert cost.stored_params / 1e6 == pytest.approx(stored, rel=0.001)


@pytest.mark.parametrize(("num_experts", "last", "stored"), [(4, 3, 36.2), (2, 5, 33.8)])
def test_the_paper_s_other_stored_sizes_are_reproduced(num_experts: int, last: int, stored: float) -> None:
    cost = vimoe.cost(vit_s14(num_experts=num_experts, last=last))
    assert cost.stored_params / 1e6 == pytest.approx(stored, rel=0.001)


def test_one_more_ffn_costs_what_the_paper_s_numbers_say() -> None:
    dense, moe = vimoe.cost(vit_s14()), vimoe.cost(vit_s14(last=1))
    router = 384 * 8
    assert moe.activated_params - dense.activated_params == 1_181_568 + router
    assert moe.macs - dense.macs == 257 * 2 * 384 * 1536 + router


# Counted by hand


def macs_by_hand(tokens: int, ffns: float, router: int) -> int:
    """Width 32, FFN 128, 3 blocks, 16x16 patches of 3 channels, a class token, 5 classes."""
    patches = tokens - 1
    embedding = patches * 32 * (3 * 16 * 16)
    qkv, scores, values, projection = tokens * 32 * 96, tokens * tokens * 32, tokens * tokens * 32, tokens * 32 * 32
    ffn = tokens * 2 * 32 * 128
    return int(embedding + 3 * (qkv + scores + values + projection) + ffns * ffn + router + 32 * 5)


FFN = 2 * 32 * 128 + 128 + 32  # parameters
DENSE = (768 * 32 + 32) + 32 + 5 * 32 + 3 * (2 * 64 + (32 * 96 + 96) + (32 * 32 + 32) + FFN) + 64 + (32 * 5 + 5)


def test_a_dense_model_costs_what_a_count_by_hand_gives() -> None:
    assert vimoe.cost(make()) == (DENSE, DENSE, macs_by_hand(5, ffns=3, router=0))


@shared_or_not
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_an_upcycled_model_costs_what_a_count_by_hand_gives(shared_expert: bool, top_k: int) -> None:
    shared = int(shared_expert)
    for routing, selections in (("image", 1), ("token", 5)):
        model = vimoe.upcycle(make(), num_experts=4, top_k=top_k, shared_expert=shared_expert, routing=routing)
        stored = DENSE + 2 * ((4 + shared - 1) * FFN + 4 * 32)
        activated = DENSE + 2 * ((top_k + shared - 1) * FFN + 4 * 32)
        macs = macs_by_hand(5, ffns=1 + 2 * (top_k + shared), router=2 * selections * 4 * 32)
        assert vimoe.cost(model) == (stored, activated, macs)


@every_family
def test_one_expert_of_many_costs_what_the_dense_ffn_costs_and_the_routings_differ_by_the_router(
    family: Family,
) -> None:
    dense = vimoe.cost(family.make())
    tokens = family.prefix + (16 if "samvit" in family.name else 4)
    router = 2 * 16 * 32
    for routing, selections in (("image", 1), ("token", tokens)):
        model = vimoe.upcycle(family.make(), num_experts=16, shared_expert=False, routing=routing)
        moe = vimoe.cost(model)
        assert moe.activated_params - dense.activated_params == router
        assert moe.macs - dense.macs == router * selections
        assert moe.stored_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("backend", ["reference", "loop", "grouped", "dense"])
def test_the_way_the_experts_are_computed_does_not_change_the_cost(backend: Any) -> None:
    model = vimoe.upcycle(make(), backend=backend, routing="token")
    assert vimoe.cost(model) == vimoe.cost(vimoe.upcycle(make(), routing="token"))


# Sizes


@pytest.mark.parametrize("size", [64, (64, 64)])
def test_another_image_size_can_be_asked_for(size: Any) -> None:
    model = vimoe.upcycle(make(), num_experts=4)
    at_32, at_64 = vimoe.cost(model), vimoe.cost(model, size)
    assert at_64.macs == macs_by_hand(17, ffns=5, router=2 * 4 * 32)
    assert at_64[:2] == at_32[:2]  # the position embedding of the model at hand is what is stored
    assert vimoe.cost(model, 32) == at_32


def test_height_and_width_may_differ() -> None:
    assert vimoe.cost(make(), (16, 48)).macs == macs_by_hand(4, ffns=3, router=0)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "beit_base_patch16_224",
        "eva02_base_patch14_224",
        "vit_base_patch16_rope_reg1_gap_256",
    ],
)
def test_another_image_size_costs_what_a_model_made_for_it_costs(name: str) -> None:
    size = 56 if "patch14" in name else 64
    assert vimoe.cost(make(name), size).macs == vimoe.cost(make(name, img_size=size)).macs


def test_models_of_any_image_size_are_counted_at_the_asked_one() -> None:
    model = make(dynamic_img_size=True)
    assert vimoe.cost(model, 64).macs == macs_by_hand(17, ffns=3, router=0)


def test_the_model_s_own_channels_and_shape_are_the_default() -> None:
    model = make(img_size=(32, 48), in_chans=1)
    assert vimoe.cost(model) == vimoe.cost(model, (32, 48))
    assert vimoe.cost(model).macs == macs_by_hand(7, ffns=3, router=0) - 6 * 32 * 2 * 16 * 16


@pytest.mark.parametrize("size", [0, -16, (16,), (16, 16, 16), (32, 0), "32", 1.5, (32, 1.5), True, []])
def test_an_image_size_that_is_none_gets_one_line(size: Any) -> None:
    model = make()
    with refused(f"image_size must be one or two positive whole numbers, got {size!r}", model):
        vimoe.cost(model, size)


def test_an_image_smaller_than_a_patch_gets_one_line() -> None:
    model = make()
    with refused("cannot count an image of 8x8 pixels in this model: …", model):
        vimoe.cost(model, 8)


def test_a_model_of_one_size_alone_says_so() -> None:
    model = make("samvit_base_patch16")
    with refused("cannot count an image of 48x64 pixels in this model: …", model):
        vimoe.cost(model, (48, 64))


# Side effects


@every_family
def test_counting_changes_neither_the_model_nor_the_next_count(family: Family) -> None:
    model = vimoe.upcycle(family.make(), num_experts=4).train()
    before = snapshot(model)
    first = vimoe.cost(model)
    assert_unchanged(model, before)
    if "samvit" not in family.name:  # which takes images of its own size alone
        vimoe.cost(model, 56 if "patch14" in family.name else 64)
        assert_unchanged(model, before)
    assert vimoe.cost(model) == first


def test_counting_does_not_depend_on_what_the_model_is_set_to() -> None:
    model = vimoe.upcycle(make(), num_experts=4)
    cost = vimoe.cost(model)
    model.set_grad_checkpointing()
    assert vimoe.cost(model.train()) == cost
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert vimoe.cost(model) == cost
    assert vimoe.cost(model.to(torch.bfloat16)) == cost
    assert vimoe.cost(model.requires_grad_(False)) == cost


@pytest.mark.parametrize("wrap", [Holder, nn.DataParallel])
def test_a_model_costs_the_same_inside_a_wrapper(wrap) -> None:
    model = vimoe.upcycle(make(), num_experts=4)
    assert vimoe.cost(wrap(model)) == vimoe.cost(model)
    assert vimoe.cost(wrap(model), 64) == vimoe.cost(model, 64)


def test_a_model_costs_the_same_in_distributed_training(tmp_path: Path) -> None:
    model = vimoe.upcycle(make(), num_experts=4)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert vimoe.cost(DistributedDataParallel(model)) == vimoe.cost(model)
    finally:
        dist.destroy_process_group()


# After pruning


def test_a_layer_pruned_to_its_ffn_costs_what_the_dense_one_costs() -> None:
    dense = vimoe.cost(make())
    model = vimoe.upcycle(make(), num_experts=4)
    one_layer = vimoe.cost(vimoe.upcycle(make(), num_experts=4, last=1))
    assert vimoe.cost(vimoe.prune(model, {1: []})) == one_layer
    assert vimoe.cost(vimoe.prune(model, {2: []})) == dense


def test_removed_experts_are_no_longer_stored_and_the_activated_ones_stay() -> None:
    model = vimoe.upcycle(make(), num_experts=4)
    full = vimoe.cost(model)
    fewer = vimoe.cost(vimoe.prune(model, {1: [0], 2: [3, 1, 2]}))
    router = 32
    assert full.stored_params - fewer.stored_params == 4 * (FFN + router)
    assert full.activated_params - fewer.activated_params == 4 * router
    assert full.macs - fewer.macs == 4 * router


@pytest.mark.parametrize("slots", [1, 4, 200])
def test_slots_activate_what_they_compute(slots: int) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    moe = vimoe.upcycle(model, last=1, num_experts=4, router="soft", routing="token", slots=slots, shared_expert=False)
    layer = moe.blocks[1].mlp
    expert = sum(parameter.numel() for parameter in layer.experts.parameters()) // 4
    found = vimoe.cost(moe)
    used = min(4.0, 4 * slots / 5)  # five tokens
    assert found.stored_params - found.activated_params == round((4 - used) * expert)
