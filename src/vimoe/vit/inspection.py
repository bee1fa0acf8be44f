"""What a timm model would cost, upcycled or not, from its name alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from vimoe.errors import UserError, first_line
from vimoe.moe.config import MoEConfig
from vimoe.vit.cost import Cost, cost
from vimoe.vit.upcycle import get_config, upcycle


class CostComparison(NamedTuple):
    """A model before and after upcycling.

    Attributes:
        name: timm's name of the model.
        dense: Its cost as it is.
        upcycled: Its cost with MoE layers.
        config: The MoE layers.
    """

    name: str
    dense: Cost
    upcycled: Cost
    config: MoEConfig


def compare_costs(
    name: str, image_size: int | None = None, num_classes: int | None = None, **upcycling: Any
) -> CostComparison:
    """Count a timm model before and after upcycling, on the meta device: no weights, no download.

    Args:
        name: timm's name of the model.
        image_size: Pixels of a side; the model's own by default.
        num_classes: Classes of the head; the model's own by default.
        upcycling: Arguments of `vimoe.upcycle`.

    Raises:
        UserError: timm does not know the model, or it cannot be upcycled so.
    """
    model = _weightless(name, image_size, num_classes)
    dense = cost(model, image_size)
    upcycle(model, **upcycling)
    config = get_config(model)
    assert config is not None
    return CostComparison(name, dense, cost(model, image_size), config)


def _weightless(name: str, image_size: int | None, num_classes: int | None) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]
        raise UserError(f"timm has no model {name!r}{', did you mean ' + ', '.join(near) + '?' if near else ''}")
    args: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with torch.device("meta"):
            if image_size is None:
                return timm.create_model(name, **args)
            try:
                return timm.create_model(name, img_size=image_size, **args)
            except TypeError:  # models of any size take no img_size
                return timm.create_model(name, **args)
    except Exception as error:  # timm raises whatever its models raise
        raise UserError(f"timm cannot make {name}: {first_line(error)}") from error
