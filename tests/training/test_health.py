import math

import pytest
import timm
import torch

import vimoe
from vimoe.training.health import EpochLoad, routing_health


def test_figures_of_a_collapsed_and_of_an_undecided_router() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=3, num_heads=2, num_classes=2
    )
    vimoe.upcycle(model, last=2, num_experts=4)
    assert routing_health(model) == {}
    with torch.no_grad():
        model.blocks[1].mlp.router.weight.zero_()
        decided = 1e4 * torch.randn(16)
        model.blocks[2].mlp.router.weight.copy_(torch.stack([decided, -decided, 0 * decided, 0 * decided]))
    model(torch.randn(8, 1, 8, 8))
    metrics = routing_health(model)
    assert list(metrics) == ["1", "2"]
    undecided = metrics["1"]  # equal logits: every image takes the same expert by default
    assert undecided["entropy"] == pytest.approx(math.log(4), abs=1e-5)
    assert undecided["top_gate"] == pytest.approx(0.25)
    assert undecided["max_load"] == 1.0
    assert undecided["effective_experts"] == pytest.approx(1.0)
    assert undecided["balance_loss"] == pytest.approx(1.0)
    assert sum(metrics["2"]["load"]) == pytest.approx(1.0)
    assert metrics["2"]["entropy"] == pytest.approx(0.0, abs=0.02)


def test_the_load_of_an_epoch_is_the_mean_over_its_batches() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=3, num_heads=2, num_classes=2
    )
    vimoe.upcycle(model, last=1, num_experts=4)
    load, batches = EpochLoad(), []
    assert load.of(2) is None
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        with vimoe.record_routing(model) as record:
            model(torch.randn(8, 1, 8, 8))
        load.add(model)
        batches.append(torch.bincount(record.expert_ids[2].flatten(), minlength=4) / 8)
    expected = torch.stack(batches).mean(0)
    measured = load.of(2)
    assert measured is not None
    assert torch.allclose(measured, expected)
    metrics = routing_health(model, load)["2"]
    assert metrics["max_load"] == pytest.approx(expected.max().item())
