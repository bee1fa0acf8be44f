"""What a timm model would cost, upcycled or not, from its name alone."""

import difflib
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from vimoe.errors import UserError, first_line, suggest
from vimoe.moe.config import MoEConfig
from vimoe.vit.cost import Cost, cost
from vimoe.vit.upcycle import get_config, upcycle


class CostComparison(NamedTuple):
    """The cost of a model, by timm's name, as it is and with the MoE layers of `config`."""

    name: str
    dense: Cost
    upcycled: Cost
    config: MoEConfig


def compare_costs(
    name: str, image_size: int | None = None, num_classes: int | None = None, **upcycling: Any
) -> CostComparison:
    """Count a timm model before and after upcycling, on the meta device: no weights, no download.

    Pixels of a side and classes of the head are the model's own by default; `upcycling` are arguments of
    `vimoe.upcycle`.

    Raises UserError if timm does not know the model, or it cannot be upcycled so.
    """
    model = _weightless(name, image_size, num_classes)
    dense = cost(model, image_size)
    upcycle(model, **upcycling)
    config = get_config(model)
    assert config is not None
    return CostComparison(name, dense, cost(model, image_size), config)


def check_model_name(name: str) -> None:
    """Raise a `UserError`, with the nearest names, where timm knows no such model or no such weights of it."""
    architecture, _, tag = name.partition(".")
    if timm.is_model(name):
        known = timm.list_pretrained(f"{architecture}.*")
        if tag and name not in known:
            raise UserError(f"timm has no weights {name!r}{suggest(name, known)}")
    else:
        near = difflib.get_close_matches(architecture[:80], timm.list_models())
        raise UserError(f"timm has no model {name!r}{', did you mean ' + ', '.join(near) + '?' if near else ''}")


def _weightless(name: str, image_size: int | None, num_classes: int | None) -> nn.Module:
    check_model_name(name)
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
