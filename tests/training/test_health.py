import math

import pytest
import timm
import torch
from torch import nn

import vimoe
from vimoe.training.health import RoutingHealth
from vimoe.vit.plan import LayerPlan


def small(last: int) -> nn.Module:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=3, num_heads=2, num_classes=2
    )
    return vimoe.upcycle(model, last=last, num_experts=4)


def test_metrics_of_a_collapsed_and_of_an_undecided_router() -> None:
    model = small(last=2)
    health = RoutingHealth(model)
    health.add()
    assert health.metrics() == {}
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.router.weight").zero_()
        decided = 1e4 * torch.randn(16)
        model.get_parameter("blocks.2.mlp.router.weight").copy_(
            torch.stack([decided, -decided, 0 * decided, 0 * decided])
        )
    model(torch.randn(8, 1, 8, 8))
    health.add()
    metrics = health.metrics()
    assert list(metrics) == ["1", "2"]
    undecided = metrics["1"]  # equal logits: every image takes the same expert by default
    assert undecided["entropy"] == pytest.approx(math.log(4), abs=1e-5)
    assert undecided["top_gate"] == pytest.approx(0.25)
    assert undecided["max_load"] == 1.0
    assert undecided["effective_experts"] == pytest.approx(1.0)
    assert undecided["balance_loss"] == pytest.approx(1.0)
    assert sum(metrics["2"]["load"]) == pytest.approx(1.0)
    assert metrics["2"]["entropy"] == pytest.approx(0.0, abs=0.02)


def test_metrics_of_an_epoch_are_those_of_all_its_selections_together() -> None:
    model = small(last=1)
    health, ids, probs = RoutingHealth(model), [], []
    for seed, images in ((1, 8), (2, 3), (3, 8)):
        torch.manual_seed(seed)
        model(torch.randn(images, 1, 8, 8))
        health.add()
        selection = model.get_submodule("blocks.2.mlp").last_selection
        ids.append(selection.expert_ids)
        probs.append(selection.probs.detach())
    load = torch.bincount(torch.cat(ids).flatten(), minlength=4) / 19
    together = torch.cat(probs)
    assert health.metrics()["2"] == {
        "load": pytest.approx(load.tolist(), abs=1e-4),
        "max_load": pytest.approx(load.max().item()),
        "effective_experts": pytest.approx(torch.special.entr(load).sum().exp().item()),
        "balance_loss": pytest.approx(4 * (load * together.mean(0)).sum().item()),
        "entropy": pytest.approx(torch.special.entr(together).sum(-1).mean().item()),
        "top_gate": pytest.approx(together.amax(-1).mean().item()),
    }


def test_totals_go_on_where_they_were_and_only_one_process_brings_them_in() -> None:
    model = small(last=1)
    health = RoutingHealth(model)
    model(torch.randn(8, 1, 8, 8))
    health.add()
    resumed, other = RoutingHealth(model), RoutingHealth(model)
    resumed.restore(health.totals(), first=True)
    other.restore(health.totals(), first=False)
    assert other.totals()[2].abs().sum() == 0
    for each in (health, resumed):
        each.add()
    assert resumed.metrics() == health.metrics()
    vimoe.prune(model, vimoe.Plan((LayerPlan(2, (0, 1, 2), merge=True),)))  # with more router rows than experts
    model(torch.randn(8, 1, 8, 8))
    merged = RoutingHealth(model)
    merged.add()
    again = RoutingHealth(model)
    again.restore(merged.totals(), first=True)
    assert again.metrics() == merged.metrics()
    with pytest.raises(ValueError, match="another number of experts"):
        resumed.restore({2: torch.ones(8)}, first=True)
