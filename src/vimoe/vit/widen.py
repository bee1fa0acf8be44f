"""The control of equal size: a dense model whose FFNs are as wide as an MoE layer's activated experts together."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from vimoe.errors import UserError
from vimoe.moe.experts import check_ffn
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.changes import note_change
from vimoe.vit.ffn_names import with_timm_names
from vimoe.vit.meta import read_token_layout

Model = TypeVar("Model", bound=nn.Module)


def widen(model: Model, layers: Sequence[int], factor: float) -> Model:
    """Give the FFNs of these blocks `factor` times as many hidden units, in place, without changing the function.

    A new unit looks at its input as a random old one does but for noise of a tenth of the weights' spread, and its
    outgoing weights are 0: it begins to learn in the first step, and no two units stay alike.

    Args:
        model: A dense timm ViT, or a module that holds one.
        layers: Block numbers from 0.
        factor: Hidden units after against before, 1 at least; see `activated_factor`.

    Raises UserError if an FFN is not one that this can be done with. The model is then unchanged.
    """
    blocks = find_backbone(model).blocks
    ffns = [blocks[layer].get_submodule("mlp") for layer in layers]
    if factor < 1:
        raise UserError(f"an FFN widened {factor:g} times would lose units: these experts activate less than the FFN")
    for ffn in ffns:
        check_two_maps(ffn, "widened")
    for ffn in ffns:
        fc2: Any = ffn.get_submodule("fc2")
        resize_hidden(ffn, round(factor * fc2.in_features))
    note_change(find_backbone(model).vit, "vimoe_widened", {"layers": list(layers), "factor": factor})
    return model


def activated_factor(dense: nn.Module, moe: nn.Module) -> float:
    """Hidden units that an MoE layer activates, against those of the FFN it came from; the mean over the layers.

    `moe` is `dense` upcycled. What belongs to no hidden unit is left out: routers, and biases behind the experts.
    Low-rank experts count by their parameters.
    """
    blocks, layers = find_backbone(dense).blocks, moe_layers(moe)
    tokens = read_token_layout(find_backbone(moe), list(layers)).num_tokens
    factors = []
    for number, layer in layers.items():
        experts = _inner(layer.experts) / layer.experts.num_experts * layer.router.assignments(tokens) / tokens
        ffn = _inner(with_timm_names(blocks[number].get_submodule("mlp")))
        factors.append(experts / ffn + (layer.shared_expert is not None))
    return sum(factors) / len(factors)


def _inner(ffn: nn.Module) -> int:
    return sum(value.numel() for name, value in ffn.named_parameters() if name != "fc2.bias")


def check_two_maps(ffn: nn.Module, change: str) -> None:
    """Raise a `UserError` where an FFN is not two linear maps whose hidden units could be more or fewer."""
    check_ffn(ffn)
    first, second = getattr(ffn, "fc1", None), getattr(ffn, "fc2", None)
    if not (isinstance(first, nn.Linear) and isinstance(second, nn.Linear)) or (
        first.out_features != second.in_features  # a packed gate
    ):
        raise UserError(f"{type(ffn).__name__} cannot be {change}: only FFNs of two linear maps can")
    if any(p.ndim for name, p in ffn.named_parameters() if not name.startswith(("fc1.", "fc2."))):
        raise UserError(f"{type(ffn).__name__} cannot be {change}: it has a norm between its linear maps")


def resize_hidden(ffn: nn.Module, hidden: int) -> None:
    """Give an FFN so many hidden units, in place: new ones as `widen` says, or a random part of those that it has."""
    first, second = ffn.get_submodule("fc1"), ffn.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        weight, more = first.weight, hidden - len(first.weight)
        if more < 0:
            units = torch.randperm(len(weight), device=weight.device)[:hidden]
        else:
            copied = torch.randint(len(weight), (more,), device=weight.device)
            units = torch.cat([torch.arange(len(weight), device=weight.device), copied])
        ingoing, outgoing = weight[units], second.weight[:, units]
        if more > 0:
            noise = torch.randn(more, weight.shape[1], device=weight.device, dtype=weight.dtype)
            ingoing[-more:] += 0.1 * weight.std() * noise
            outgoing[:, -more:] = 0
        first.weight, second.weight = nn.Parameter(ingoing), nn.Parameter(outgoing)
        if first.bias is not None:
            first.bias = nn.Parameter(first.bias[units])
    first.out_features = second.in_features = hidden
