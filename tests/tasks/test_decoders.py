from collections.abc import Callable

import pytest
import torch
from torch import nn

from vimoe.tasks.decoders import LinearDecoder, MultiLevelDecoder, PooledContext


def test_the_linear_decoder_is_a_linear_map_of_each_normalised_patch() -> None:
    decoder = LinearDecoder(5, 3).eval()
    decoder.norm.running_mean.normal_()
    decoder.norm.running_var.uniform_(0.5, 2)
    features = torch.randn(2, 5, 4, 6)
    logits = decoder([torch.randn(2, 5, 4, 6), features])
    patch = (features[1, :, 2, 3] - decoder.norm.running_mean) / (decoder.norm.running_var + decoder.norm.eps).sqrt()
    assert torch.allclose(logits[1, :, 2, 3], decoder.classify.weight[:, :, 0, 0] @ patch, atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_the_multi_level_decoder_answers_at_four_times_the_grid_whatever_the_grid(grid: tuple[int, int]) -> None:
    decoder = MultiLevelDecoder(8, 3, dim=4).eval()
    logits = decoder([torch.randn(2, 8, *grid) for _ in range(4)])
    assert logits.shape == (2, 3, 4 * grid[0], 4 * grid[1])


def test_the_multi_level_decoder_learns_from_one_image_of_one_patch() -> None:
    decoder = MultiLevelDecoder(8, 3, dim=32).train()
    decoder([torch.randn(1, 8, 1, 1) for _ in range(4)]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_every_level_changes_the_answer_and_every_parameter_has_a_gradient() -> None:
    decoder = MultiLevelDecoder(8, 3, dim=32)
    levels = [torch.randn(1, 8, 4, 4, requires_grad=True) for _ in range(4)]
    decoder(levels).square().sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_pooled_context_brings_what_is_far_away() -> None:
    context = PooledContext(4, 32).eval()
    x = torch.randn(1, 4, 12, 12)
    changed = x.clone()
    changed[..., 11, 11] += 10
    assert not torch.allclose(context(x)[..., 0, 0], context(changed)[..., 0, 0])


def test_at_first_all_classes_are_nearly_equally_probable() -> None:
    for decoder in (LinearDecoder(16, 7), MultiLevelDecoder(16, 7, dim=32)):
        probs = decoder.eval()([torch.randn(2, 16, 4, 4)] * 4).softmax(1)
        assert (probs - 1 / 7).abs().max() < 0.05


def test_shallow_blocks_are_the_fine_levels_and_deep_ones_the_coarse() -> None:
    decoder, seen = MultiLevelDecoder(8, 3, dim=4).eval(), dict[str, torch.Tensor]()

    def note(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
        return lambda _, inputs: seen.update({name: inputs[0]})

    for name in ("pyramid", "lateral"):
        for i, module in enumerate(decoder.get_submodule(name).children()):
            module.register_forward_pre_hook(note(f"{name} {i}"))
    levels = [torch.randn(1, 8, 4, 6) for _ in range(4)]
    decoder(levels)
    assert all(seen[f"pyramid {i}"] is levels[i] for i in range(4))
    assert [tuple(seen[f"lateral {i}"].shape[-2:]) for i in range(3)] == [(16, 24), (8, 12), (4, 6)]
    assert torch.equal(seen["lateral 2"], levels[2])
