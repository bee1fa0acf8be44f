import torch

import vimoe
from tests.export.models import SIZE, differing, vit
from vimoe.export.probe_images import probe_images
from vimoe.vit.blocks import moe_layers


def test_an_expert_that_no_noise_reaches_gets_an_image_made_for_it() -> None:
    model = differing(vimoe.upcycle(vit(), last=2, num_experts=4))
    router = moe_layers(model)[2].router
    with torch.no_grad():
        router.weight *= 0.1
        router.weight[0] += 0.02 * model.blocks[2].norm2.weight  # type: ignore[union-attr,operator]
    images, unreached = probe_images(model, (3, SIZE, SIZE))
    assert unreached == {}
    with torch.no_grad(), vimoe.record_routing(model) as record:
        model(images)
    assert {block: len(ids.unique()) for block, ids in record.expert_ids.items()} == {1: 4, 2: 4}


def test_an_expert_that_nothing_reaches_is_named() -> None:
    model = differing(vimoe.upcycle(vit(), last=1, num_experts=3))
    layer = moe_layers(model)[2]
    layer.router.register_forward_hook(
        lambda _m, _i, chosen: chosen._replace(expert_ids=chosen.expert_ids.clamp(max=1), logits=chosen.logits - 9)
    )
    _, unreached = probe_images(model, (3, SIZE, SIZE), steps=3)
    assert unreached == {2: [2]}
