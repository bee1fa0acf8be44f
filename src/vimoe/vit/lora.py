"""LoRA (Hu et al. 2021): a frozen model learns low-rank differences, which are saved as part of its weights."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.errors import UserError
from vimoe.vit.blocks import find_backbone

Model = TypeVar("Model", bound=nn.Module)


class LoRALinear(nn.Linear):
    """`nn.Linear` of `weight + up @ down`; up starts at 0. The sum is formed first, which costs less than two maps."""

    down: nn.Parameter  # `[rank, in]`
    up: nn.Parameter  # `[out, rank]`

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.up @ self.down, self.bias)


def add_lora(model: Model, rank: int) -> Model:
    """Give all linear maps in a ViT's blocks a difference of this rank, in place, without changing the function.

    Raises UserError if the rank is not below a map's width. The model is then unchanged.
    """
    linears = _linears(model)
    if rank >= (width := min(min(linear.weight.shape) for linear in linears)):
        raise UserError(f"a LoRA rank of {rank} is no low rank in a model of width {width}: give a lora_rank below it")
    for linear in linears:
        new, limit = linear.weight.new_empty, 1 / math.sqrt(linear.in_features)
        linear.down = nn.Parameter(new(rank, linear.in_features).uniform_(-limit, limit))
        linear.up = nn.Parameter(new(linear.out_features, rank).zero_())
        linear.__class__ = LoRALinear
    return model


def lora_rank(model: nn.Module, params: int) -> int:
    """The rank at which `add_lora` adds as many parameters as come nearest to these, 1 at least."""
    return max(1, round(params / sum(sum(linear.weight.shape) for linear in _linears(model))))


def merge_lora(model: Model) -> Model:
    """Make the differences part of the weights, in place: the model is a plain one again."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoRALinear):
                module.weight += module.up @ module.down
                del module.up, module.down
                module.__class__ = nn.Linear  # type: ignore[assignment]
    return model


def has_lora(model: nn.Module) -> bool:
    """Whether a model has such differences."""
    return any(isinstance(module, LoRALinear) for module in model.modules())


def _linears(model: nn.Module) -> list[nn.Linear]:
    """The linear maps of the blocks; not those whose owner adds biases of its own and so goes around their forward."""
    owners = [owner for block in find_backbone(model).blocks for owner in block.modules()]
    return [
        child
        for owner in owners
        for name, child in owner.named_children()
        if type(child) is nn.Linear and not (name == "qkv" and getattr(owner, "q_bias", None) is not None)
    ]
