from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vimoe
from tests.vit.families import (
    Family,
    Holder,
    assert_unchanged,
    every_family,
    every_routing,
    make,
    make_images,
    randomise,
    refused,
    run,
    snapshot,
)
from vimoe.vit.blocks import moe_layers


def upcycled(name: str = "vit_tiny_patch16_224", **settings: Any) -> nn.Module:
    """An upcycled model whose router has opinions."""
    model = vimoe.upcycle(make(name), **{"num_experts": 4, **settings})
    randomise(model)
    return model


def assert_equal_records(one: dict[int, Tensor], other: dict[int, Tensor]) -> None:
    assert list(one) == list(other)
    for layer in one:
        assert torch.equal(one[layer], other[layer])


@every_family
@every_routing
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_record_holds_one_line_for_every_image_or_token(family: Family, routing: Any, top_k: int) -> None:
    model = vimoe.upcycle(family.make(), num_experts=4, routing=routing, top_k=top_k)
    images = make_images(model, 5)
    with vimoe.record_routing(model) as record:
        run(model, images)
    patches = 16 if "samvit" in family.name else 4
    selections = 5 if routing == "image" else 5 * (family.prefix + patches)
    assert list(record.expert_ids) == list(record.gates) == [1, 2]
    for ids, gates in zip(record.expert_ids.values(), record.gates.values(), strict=True):
        assert ids.shape == gates.shape == (selections, top_k)
        assert ids.dtype == torch.int64
        assert gates.dtype == torch.float32
        assert ids.device.type == gates.device.type == "cpu"
        assert int(ids.min()) >= 0
        assert int(ids.max()) < 4


def test_a_record_says_what_the_layers_decided() -> None:
    model = upcycled(top_k=2, routing="token")
    with vimoe.record_routing(model) as record:
        run(model, make_images(model))
    for number, layer in moe_layers(model).items():
        assert torch.equal(record.expert_ids[number], layer.last_selection.expert_ids)
        assert torch.equal(record.gates[number], layer.last_selection.gates)
        assert torch.equal(record.expert_ids[number], layer.last_selection.logits.topk(2).indices)
    assert all(ids.unique().numel() > 1 for ids in record.expert_ids.values())


@every_routing
def test_several_forwards_are_recorded_one_after_the_other(routing: Any) -> None:
    model = upcycled(routing=routing)
    images = make_images(model, 6)
    with vimoe.record_routing(model) as whole:
        run(model, images)
    with vimoe.record_routing(model) as parts:
        for part in images.split([3, 1, 2]):
            run(model, part)
    assert_equal_records(parts.expert_ids, whole.expert_ids)


def test_recording_does_not_change_the_output() -> None:
    model = upcycled()
    images = make_images(model)
    output = run(model, images)
    with vimoe.record_routing(model):
        assert torch.equal(run(model, images), output)


def test_records_nest() -> None:
    model = upcycled()
    first, second, third = make_images(model, 3).split(1)
    with vimoe.record_routing(model) as outer:
        run(model, first)
        with vimoe.record_routing(model) as inner:
            run(model, second)
        run(model, third)
    assert all(len(ids) == 3 for ids in outer.expert_ids.values())
    assert_equal_records(inner.expert_ids, {layer: ids[1:2] for layer, ids in outer.expert_ids.items()})


@every_routing
def test_nothing_is_left_behind(routing: Any) -> None:
    model = upcycled(routing=routing)
    run(model, make_images(model))
    before = snapshot(model)
    with vimoe.record_routing(model) as record:
        run(model, make_images(model))
    assert_unchanged(model, before)
    recorded = record.expert_ids
    run(model, make_images(model))
    assert_equal_records(record.expert_ids, recorded)


def test_hooks_of_others_stay() -> None:
    model = upcycled()
    seen: list[int] = []
    moe_layers(model)[2].register_forward_hook(lambda *_: seen.append(1))
    with vimoe.record_routing(model):
        run(model, make_images(model))
    run(model, make_images(model))
    assert seen == [1, 1]


def test_an_exception_inside_goes_out_keeps_the_record_and_leaves_nothing_behind() -> None:
    model = upcycled()
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), vimoe.record_routing(model) as record:  # noqa: PT012
        run(model, make_images(model))
        1 / 0  # noqa: B018
    assert_unchanged(model, before)
    assert all(len(ids) == 4 for ids in record.expert_ids.values())


def test_a_forward_that_fails_half_way_leaves_nothing_behind() -> None:
    model = upcycled()
    before = snapshot(model)
    with pytest.raises(AssertionError, match="Input height"), vimoe.record_routing(model) as record:
        run(model, torch.randn(1, 3, 48, 48))
    assert_unchanged(model, before)
    assert record.expert_ids == {}


def test_a_record_holds_no_graph() -> None:
    model = upcycled()
    with vimoe.record_routing(model) as record:
        model(make_images(model)).sum().backward()
    assert not any(gates.requires_grad for gates in record.gates.values())


@every_routing
# A recomputation ends at the last tensor that it needs: with LayerScale behind the MoE layer, else inside it.
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_activation_checkpointing_is_not_counted_twice(routing: Any, name: str) -> None:
    model = upcycled(name, routing=routing).train()
    images = make_images(model)
    with vimoe.record_routing(model) as plain:
        model(images).sum().backward()
    model.set_grad_checkpointing()
    with vimoe.record_routing(model) as checkpointed:
        for part in images.split(2):
            (model(part).sum() + vimoe.balance_loss(model)).backward()
    assert_equal_records(checkpointed.expert_ids, plain.expert_ids)


@pytest.mark.parametrize("wrap", [Holder, nn.DataParallel])
def test_recording_works_through_wrappers(wrap) -> None:
    model = upcycled()
    images = make_images(model)
    with vimoe.record_routing(wrap(model)) as outside, vimoe.record_routing(model) as inside:
        run(wrap(model), images)
    assert_equal_records(outside.expert_ids, inside.expert_ids)


def test_the_cost_can_be_counted_while_recording() -> None:
    model = upcycled()
    cost = vimoe.cost(model)
    with vimoe.record_routing(model) as record:
        assert vimoe.cost(model) == cost
    assert record.expert_ids == {}


def test_layers_that_were_pruned_are_not_recorded_and_smaller_ones_are() -> None:
    model = vimoe.prune(upcycled(last=3), {0: [], 1: [3, 1]})
    with vimoe.record_routing(model) as record:
        run(model, make_images(model))
    assert list(record.expert_ids) == [1, 2]
    assert int(record.expert_ids[1].max()) <= 1


def test_a_dense_model_has_no_routing_to_record() -> None:
    model = make()
    line = "this model has no MoE layer whose routing could be recorded: call vimoe.upcycle first"
    with refused(line, model), vimoe.record_routing(model):
        pass
