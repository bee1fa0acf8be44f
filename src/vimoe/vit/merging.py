"""Low-rank experts to experts with whole maps of their own: the same function, stored whole."""

from dataclasses import replace
from typing import TypeVar

from torch import nn

from vimoe.errors import UserError
from vimoe.vit.blocks import moe_layers
from vimoe.vit.upcycle import get_config, set_config

Model = TypeVar("Model", bound=nn.Module)


def merge(model: Model) -> Model:
    """Add the differences of low-rank experts to what they differ from, in place; gives `model` itself.

    Raises UserError, and leaves the model as it was, if it has no low-rank experts.

    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    >>> vimoe.merge(vimoe.upcycle(model, expert_rank=4)).moe_config.expert_rank
    0
    """
    config = get_config(model)
    if config is None or not config.expert_rank:
        raise UserError("this model has no low-rank experts to merge")
    for layer in moe_layers(model).values():
        layer.experts = layer.experts.materialised()
    set_config(model, replace(config, expert_rank=0))
    return model
