import pytest
import torch
from torch import Tensor, nn

import vimoe
from tests.vit.families import DEPTH, Family, Holder, every_family, make, make_images, randomise, run, spread_routing
from vimoe.analysis.ablation_scores import (
    Ablation,
    ablated_scores,
    image_scores,
    share_of_right_labels,
    share_of_right_pixels,
)
from vimoe.analysis.ablations import ablated, layer_ablations
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.upcycle import get_config


def exact(outputs: Tensor, _targets: Tensor) -> Tensor:
    """A score that shows every change of the output."""
    return outputs.flatten(1).double().square().sum(1)


def every_ablation(model: nn.Module, names: tuple[str, ...] = ("mean", "second", "pruned")) -> list[Ablation]:
    config = get_config(model)
    assert config is not None
    load = torch.full((4,), 0.25)
    offered = {n: layer_ablations(n, layer, config, load, 1.0) for n, layer in moe_layers(model).items()}
    return [{number: answers[name]} for number, answers in offered.items() for name in names]


def data(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(make_images(model, size), torch.zeros(size, dtype=torch.long)) for size in (3, 2)]


@every_family
def test_handing_on_what_was_computed_gives_the_scores_of_whole_forwards(family: Family) -> None:
    model = vimoe.upcycle(family.make(), last=2, num_experts=4, routing="token")
    randomise(model)
    spread_routing(model, make_images(model))
    batches, changes = data(model), every_ablation(model)
    changes.append({**changes[0], **changes[-1]})  # two layers at once
    found = ablated_scores(model, batches, changes, exact)
    assert found.shape == (len(changes), 5)
    for change, scores in zip(changes, found, strict=True):
        with ablated(model, change):
            whole = torch.cat([exact(run(model, images), labels) for images, labels in batches])
        assert torch.equal(scores, whole)
    assert len({tuple(row.tolist()) for row in found}) == len(changes)


def test_the_cost_is_what_it_is_said_to_be() -> None:
    model = vimoe.upcycle(make(), layers=[1, 2], num_experts=4)
    calls = [0]
    for block in find_backbone(model).blocks:
        block.attn.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    batches, changes = data(model), every_ablation(model)
    ablated_scores(model, batches, changes)
    assert calls[0] == 2 * (3 + 3 * 2 + 3 * 1) < 2 * DEPTH * (1 + len(changes))
    calls[0] = 0
    ablated_scores(model, batches, changes[:1])
    assert calls[0] == 2 * DEPTH


def test_a_model_that_holds_the_vit_is_disturbed_as_well_and_left_as_it_was() -> None:
    model = Holder(vimoe.upcycle(make(), last=2, num_experts=4)).train()
    batches = data(model.module)
    changes = every_ablation(model)
    assert torch.equal(
        ablated_scores(model, batches, changes, exact), ablated_scores(model.module, batches, changes, exact)
    )
    assert model.training
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_no_ablation_gives_no_scores() -> None:
    model = vimoe.upcycle(make(), last=1, num_experts=4)
    assert ablated_scores(model, data(model), []).shape == (0, 5)


def test_scores_of_labels_and_pixels() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert share_of_right_labels(logits, torch.tensor([1, 1, 1])).tolist() == [1, 0, 1]
    maps = torch.zeros(2, 3, 1, 4)
    maps[0, 1] = 1.0
    masks = torch.tensor([[[1, 1, 2, 255]], [[255, 255, 255, 255]]])
    assert share_of_right_pixels(maps, masks).tolist() == pytest.approx([2 / 3, 1])


def test_every_image_is_scored_once_in_order() -> None:
    model = make()
    batches = data(model)
    whole = torch.cat([exact(run(model, images), labels) for images, labels in batches])
    assert torch.equal(image_scores(model, batches, exact), whole)
