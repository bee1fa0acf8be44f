"""ViMoE by name in timm: `timm.create_model("vimoe", ...)` after this module was imported."""

from functools import partial
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.moe.losses import balance_loss
from vimoe.vit.blocks import moe_layers
from vimoe.vit.checkpoint import OWN_ARGS, load
from vimoe.vit.upcycle import upcycle

UPCYCLING = (
    *("last", "layers", "num_experts", "top_k", "shared_expert", "routing", "preset", "gate", "init", "gate_input"),
    *("router_noise", "backend"),
)


@register_model  # type: ignore[untyped-decorator]
def vimoe(
    pretrained: bool = False, *, base: str = "", folder: str = "", balance_weight: float = 0.01, **args: Any
) -> nn.Module:
    """A ViMoE for `timm.create_model`.

    Args:
        pretrained: With `base`, start from timm's weights of it.
        base: timm's name of the ViT to upcycle; settings of `vimoe.upcycle` are taken from `args`.
        folder: A model or run folder, or `hf-hub:user/name`, instead of `base`: its model as it is.
        balance_weight: Weight of the balance loss, whose gradient every backward through the output adds.
        args: Others are those of `timm.create_model`.

    Raises UserError if neither or both of `base` and `folder` are given, or there is no such model.
    """
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # of this name, and it has none
        args.pop(name, None)
    if bool(base) == bool(folder):
        raise UserError("the model 'vimoe' needs base=NAME of a timm model, or folder=FOLDER of a ViMoE, and not both")
    if folder:
        if needless := sorted(set(args) & set(UPCYCLING)):
            raise UserError(f"{needless[0]} belongs to base=NAME: the model in {folder} is taken as it is")
        model = load(folder, **args).train()
    else:
        upcycling = {name: args.pop(name) for name in UPCYCLING if name in args}
        model = upcycle(timm.create_model(base, pretrained=pretrained, **args), **upcycling)
    if balance_weight and any(layer.router.top_k for layer in moe_layers(model).values()):
        model.register_forward_hook(partial(_with_balance, balance_weight))
    # timm will add the arguments of this function, which its own function for the architecture does not take.
    model.__dict__[OWN_ARGS] = dict(model._model_args)  # type: ignore[arg-type]
    return model


def _with_balance(weight: float, model: nn.Module, _images: object, output: Any) -> Any:
    if not (model.training and isinstance(output, Tensor) and output.requires_grad):
        return output
    return _Carry.apply(output, weight * balance_loss(model))


class _Carry(torch.autograd.Function):
    """The output as it is; its backward is also one of a loss that is added, unscaled, to whatever the output's is."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_ones((), dtype=ctx.dtype)
