"""Visual prompt tuning, deep (Jia et al. 2022): tokens that are learned for every block of a frozen model."""

import math
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vimoe.vit.blocks import find_backbone
from vimoe.vit.changes import note_change
from vimoe.vit.deepen import check_plain_blocks

Model = TypeVar("Model", bound=nn.Module)


def add_prompts(model: Model, tokens: int) -> Model:
    """Let every block see `tokens` prompts of its own beside the image's tokens, in place.

    They are dropped behind the block, as in the paper's deep form. They stand behind the patches: attention does not
    look at places. They start uniform within ± √(6 / (3 · patch area + width)), as in the paper's code.

    Raises UserError if the blocks are not timm's plain ones. The model is then unchanged.
    """
    vit: Any = find_backbone(model).vit
    check_plain_blocks(vit, "given prompts")
    rows, columns = vit.patch_embed.patch_size
    for block in vit.blocks:
        like = block.attn.proj.weight
        limit = math.sqrt(6 / (3 * rows * columns + like.shape[0]))
        prompts = torch.empty(tokens, like.shape[0], device=like.device, dtype=like.dtype).uniform_(-limit, limit)
        block.register_parameter("prompts", nn.Parameter(prompts))
        block.__class__ = _prompted(type(block))  # type: ignore[arg-type]
    note_change(vit, "vimoe_prompts", {"tokens": tokens})
    return model


@cache
def _prompted(kind: Any) -> Any:
    """A block of this kind that sees its prompts; other names of parameters or a wrapper would hide what it is."""

    def forward(self: Any, x: Tensor, *more: Any, **settings: Any) -> Tensor:
        prompts = self.prompts.to(x.dtype).expand(len(x), -1, -1)
        y: Tensor = kind.forward(self, torch.cat([x, prompts], 1), *more, **settings)
        return y[:, : x.shape[1]]

    return type(f"Prompted{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})
