"""MoE to dense, and fewer experts: the removed weights are really gone."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.moe.config import MoEConfig
from vimoe.moe.experts import Experts
from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.ffn_names import with_own_names
from vimoe.vit.plan import LayerPlan, Plan
from vimoe.vit.upcycle import get_config, set_config

Model = TypeVar("Model", bound=nn.Module)


def shared_ffn(layer: MoELayer, share: float = 1.0) -> nn.Module:
    """The shared expert, taken out of the layer, as the block's FFN, scaled up to what it carries alone.

    Its last linear map is divided by the share of the FFN's output that it carried after upcycling.

    Raises UserError if the layer has no shared expert.
    """
    ffn = layer.shared_expert
    if ffn is None:
        raise UserError("this MoE layer has no shared expert to become its FFN")
    with torch.no_grad():
        for parameter in ffn.get_submodule("fc2").parameters():
            parameter.div_(share)
    return ffn


def mean_ffn(layer: MoELayer, load: Tensor | None = None) -> nn.Module:
    """The experts' mean by `load` (`[E]`, any positive scale), or a uniform one without, as the block's FFN."""
    if load is None:
        load = torch.ones(layer.experts.num_experts)
    return layer.experts.to_ffn(load.double() / load.double().sum())


def merged_ffn(layer: MoELayer, config: MoEConfig, load: Tensor | None = None) -> nn.Module:
    """Shared expert and routed experts as one FFN of the usual size, the block's own.

    All started as copies of one FFN and stayed near it, so their parameters may be averaged (model soups, Wortsman
    et al. 2022): the maps into the hidden layer are the mean of the shared expert's and the experts' mean, each
    weighed by the share of the output it started with; the maps out of it are added, as the outputs are.

    The layer's gates sum to 1; its shared expert is taken out of it. For `load` see `mean_ffn`.
    """
    mean, ffn = mean_ffn(layer, load), shared_ffn(layer)
    routed = config.routed_share / (config.routed_share + config.shared_share)
    with torch.no_grad():
        for name, parameter in ffn.named_parameters():
            other = mean.get_parameter(name)
            if name.startswith("fc2."):
                parameter.add_(other)
            else:
                parameter.lerp_(other, routed)
    return ffn


def plain_ffn(layer: MoELayer, config: MoEConfig, load: Tensor | None = None) -> nn.Module:
    """What becomes of a layer that keeps no expert; the layer is used up.

    Without a shared expert, the experts' mean. With one, both merged; but where the gates are raw probabilities, how
    much the experts add differs from image to image, and the shared expert stands alone. For `load` see `mean_ffn`.
    """
    if not config.shared_expert:
        return mean_ffn(layer, load)
    if config.gate != "softmax":
        return merged_ffn(layer, config, load)
    return shared_ffn(layer, config.shared_share)


def keep_experts(layer: MoELayer, experts: Sequence[int]) -> None:
    """Remove all routed experts of a layer but these, in place; the router forgets the others."""
    layer.experts.keep(experts)
    layer.router.keep(experts)
    layer.last_selection = None


def merge_experts(layer: MoELayer, kept: Sequence[int], load: Tensor | None = None) -> None:
    """Merge all routed experts of a layer into these, in place (see `Experts.merge`); for `load` see `mean_ffn`.

    Every row of the router stays, so that what chose an expert gets the one that it went into, by the gate that it had
    (as in HC-SMoE, Chen et al. 2025). Exact where merged experts differ in the order of their hidden units alone.
    """
    load = torch.ones(layer.experts.num_experts) if load is None else load
    layer.router.renumber(dict(enumerate(layer.experts.merge(kept, load))))
    layer.last_selection = None


def prune(model: Model, plan: Plan | Mapping[int, Sequence[int]]) -> Model:
    """Carry out a plan on an upcycled model, in place.

    A layer that keeps no expert becomes a plain FFN (see `plain_ffn`). Its parameters then have timm's names again
    and no MoE code runs in it.

    Args:
        model: An upcycled model.
        plan: A `Plan`, or block number to the experts to keep (`{10: [], 11: [0, 3]}`). Other layers stay.

    Returns:
        `model` itself, with its `moe_config` brought up to date (and removed when no MoE layer is left).

    Raises UserError if the model is dense, or the plan does not fit it. The model is then unchanged.

    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    >>> vimoe.prune(vimoe.upcycle(model, last=2, num_experts=4), {10: [], 11: [0, 3]}).moe_config.num_experts
    (2,)
    """
    config = get_config(model)
    if config is None:
        raise UserError("this model has no MoE layer to prune")
    config.check_choices("prune by")
    if isinstance(plan, Mapping):
        plan = Plan(tuple(LayerPlan(layer, experts) for layer, experts in plan.items()))  # type: ignore[arg-type]
    elif not isinstance(plan, Plan):
        raise UserError(f"a plan is a vimoe.Plan or a dictionary of blocks and the experts to keep, got {plan!r}")
    plan.check(config)
    blocks, layers = find_backbone(model).blocks, moe_layers(model)
    sizes, expert_of = config.sizes, config.expert_of
    if not all(isinstance(layer.experts, Experts) for layer in layers.values()):
        raise UserError("the experts of this model are separate: call vimoe.stack first")
    for part in plan.layers:
        if part.pruned:
            layers[part.layer].experts.check_whole()
    for part in plan.layers:
        layer = layers[part.layer]
        load = None if part.load is None else torch.tensor(part.load)
        if part.pruned:
            blocks[part.layer].mlp = with_own_names(plain_ffn(layer, config, load))
            del sizes[part.layer]
        else:
            if part.merge:
                merge_experts(layer, part.experts, load)
            else:
                keep_experts(layer, part.experts)
            sizes[part.layer], expert_of[part.layer] = len(part.experts), layer.router.expert_of
    set_config(model, config.with_layers(sizes, expert_of))
    return model
