"""The control of equal size: a dense model whose FFNs are as wide as an MoE layer's activated experts together."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from vimoe.errors import UserError
from vimoe.moe.experts import check_ffn
from vimoe.vit.blocks import find_backbone

Model = TypeVar("Model", bound=nn.Module)


def widen(model: Model, layers: Sequence[int], factor: int) -> Model:
    """Give the FFNs of these blocks `factor` times as many hidden units, in place, without changing the function.

    A new unit looks at its input as a random old one does but for noise of a tenth of the weights' spread, and its
    outgoing weights are 0: it begins to learn in the first step, and no two units stay alike.

    Args:
        model: A dense timm ViT, or a module that holds one.
        layers: Block numbers from 0.
        factor: Hidden units after against before; top_k + 1 makes it as large as an MoE layer with a shared expert.

    Raises UserError if an FFN is not one that this can be done with. The model is then unchanged.
    """
    blocks = find_backbone(model).blocks
    ffns = [blocks[layer].get_submodule("mlp") for layer in layers]
    for ffn in ffns:
        check_ffn(ffn)
        first, second = getattr(ffn, "fc1", None), getattr(ffn, "fc2", None)
        if not (isinstance(first, nn.Linear) and isinstance(second, nn.Linear)) or (
            first.out_features != second.in_features  # a packed gate
        ):
            raise UserError(f"{type(ffn).__name__} cannot be widened: only FFNs of two linear maps can")
        if any(p.ndim for name, p in ffn.named_parameters() if not name.startswith(("fc1.", "fc2."))):
            raise UserError(f"{type(ffn).__name__} cannot be widened: it has a norm between its linear maps")
    for ffn in ffns:
        _widen(ffn, factor)
    vit = find_backbone(model).vit
    vit.__dict__["widened"] = {"layers": list(layers), "factor": factor}
    return model


def widening(model: nn.Module) -> dict[str, Any] | None:
    """The arguments that `widen` was called with on this model, None where it was not."""
    found: dict[str, Any] | None = find_backbone(model).vit.__dict__.get("widened")
    return found


def _widen(ffn: nn.Module, factor: int) -> None:
    first, second = ffn.get_submodule("fc1"), ffn.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        weight = first.weight
        more = (factor - 1) * len(weight)
        copied = torch.randint(len(weight), (more,), device=weight.device)
        noise = 0.1 * weight.std() * torch.randn(more, weight.shape[1], device=weight.device, dtype=weight.dtype)
        first.weight = nn.Parameter(torch.cat([weight, weight[copied] + noise]))
        if first.bias is not None:
            first.bias = nn.Parameter(torch.cat([first.bias, first.bias[copied]]))
        second.weight = nn.Parameter(torch.cat([second.weight, second.weight.new_zeros(second.out_features, more)], 1))
    first.out_features = second.in_features = len(first.weight)
