import pytest
import timm
import torch

from vimoe.errors import UserError
from vimoe.vit.checkpoint import load, save
from vimoe.vit.cost import cost
from vimoe.vit.upcycle import upcycle
from vimoe.vit.widen import widen


def tiny(**args: object) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **{**shape, **args}).eval()


def test_a_widened_model_computes_what_it_did() -> None:
    model, images = tiny(), torch.randn(2, 3, 16, 16)
    before = model(images)
    assert torch.allclose(widen(model, [1, 2], 3)(images), before, atol=1e-6)


@pytest.mark.parametrize(("top_k", "shared"), [(1, True), (2, True), (2, False)])
def test_it_activates_what_an_moe_model_does_but_for_routers_and_output_biases(top_k: int, shared: bool) -> None:
    wide, moe = (
        widen(tiny(), [1, 2], top_k + shared),
        upcycle(tiny(), 2, num_experts=4, top_k=top_k, shared_expert=shared),
    )
    routers, biases = 2 * 4 * 32, 2 * (top_k + shared - 1) * 32
    assert cost(wide).activated_params == cost(moe).activated_params - routers - biases
    assert cost(wide).macs == pytest.approx(cost(moe).macs, rel=1e-3)


def test_every_new_weight_learns_and_no_two_units_stay_alike() -> None:
    model = widen(tiny(), [2], 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    before = {name: p.detach().clone() for name, p in model.blocks[2].mlp.named_parameters()}
    for _ in range(2):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.blocks[2].mlp.named_parameters():
        assert (parameter != before[name]).all() if name == "fc2.weight" else (parameter != before[name]).any(), name
    units = model.blocks[2].mlp.fc1.weight
    assert torch.cdist(units, units).add(torch.eye(len(units))).min() > 0.004


def test_it_is_saved_and_loaded(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = widen(tiny(), [0, 2], 2)
    torch.nn.init.normal_(model.blocks[0].mlp.fc2.weight)
    save(model, tmp_path)
    loaded, images = load(tmp_path), torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), loaded(images))
    assert cost(loaded) == cost(model)


def test_a_gated_ffn_is_refused_and_left_alone() -> None:
    shape = {"img_size": 28, "embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 3}
    model = timm.create_model("vit_giant_patch14_dinov2", **shape)
    before = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(UserError, match="cannot be widened"):
        widen(model, [0, 1], 2)
    assert before == {name: p.shape for name, p in model.named_parameters()}
