"""The experts of a model, scored by the criteria that were asked for."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from vimoe.analysis.analysis_result import CriterionAgreement, LayerAnalysis
from vimoe.analysis.expert_criteria import answer_sums, check_criteria, mean_norms, rank_agreement, router_change
from vimoe.analysis.held_out import HeldOut
from vimoe.analysis.paired import mean_loss
from vimoe.errors import UserError
from vimoe.moe.layer import MoELayer
from vimoe.tasks.classification import evaluating
from vimoe.vit.blocks import moe_layers


def check_experts(model: nn.Module, criteria: Sequence[str], initial_routers: Mapping[int, Tensor]) -> None:
    """Make sure that the criteria exist, and that they can be had of this model, before anything is measured.

    Raises UserError if one is unknown; if `router-change` has other initial routers, `[E, D]` by block, than this
    model's; or if `ablation` finds no layer that has more experts than a choice takes.
    """
    check_criteria(criteria)
    layers = moe_layers(model)
    for number, layer in layers.items() if "router-change" in criteria else ():
        if layer.router.expert_of:
            raise UserError(
                f"criterion 'router-change': merged experts of block {number} have several router rows each"
            )
        if number not in initial_routers or initial_routers[number].shape != layer.router.weight.shape:
            raise UserError(f"criterion 'router-change': the initial router of block {number} is not of this model")
    if layers and "ablation" in criteria and not leaving_one_out(model):
        raise UserError("criterion 'ablation': every choice takes all experts of its layer, and none can be left out")


def leaving_one_out(model: nn.Module) -> dict[int, list[list[int]]]:
    """By block, the experts that are left when one after the other is left out; no layer that needs all of them."""
    found = {}
    for number, layer in moe_layers(model).items():
        if (size := layer.experts.num_experts) > layer.router.top_k:
            found[number] = [[e for e in range(size) if e != gone] for gone in range(size)]
    return found


def answer_norms(model: nn.Module, seen: HeldOut, device: str = "cpu") -> dict[int, dict[str, Tensor]]:
    """By block, what `mean_norms` gives over all tokens of all images, prefix tokens too."""
    layers = moe_layers(model)
    sums = {number: torch.zeros(3, layer.experts.num_experts, dtype=torch.float64) for number, layer in layers.items()}

    def add(number: int, layer: MoELayer, given: tuple[Tensor, ...], _answer: Tensor) -> None:
        chosen = layer.last_selection
        assert chosen is not None
        rows = given[0].flatten(0, 1)[:, None] if layer.routing == "token" else given[0]
        sums[number] += answer_sums(layer.experts, rows, chosen.expert_ids, chosen.gates)

    with evaluating(model), ExitStack() as hooks:
        for number, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(add, number)))
        for images, _ in seen.batches():
            model(images.to(device))
    return {number: mean_norms(total) for number, total in sums.items()}


def cheap_scores(
    model: nn.Module,
    criteria: Sequence[str],
    seen: HeldOut,
    initial_routers: Mapping[int, Tensor],
    device: str = "cpu",
) -> dict[int, dict[str, Tensor]]:
    """By block, `[E]` scores by those of the criteria that need more than `load` and less than `ablation`."""
    found: dict[int, dict[str, Tensor]] = {number: {} for number in moe_layers(model)}
    if "router-change" in criteria:
        for number, layer in moe_layers(model).items():
            after = layer.router.weight.detach().double().cpu()
            found[number]["router-change"] = router_change(initial_routers[number].double(), after)
    if {"reap", "activation"} & set(criteria):
        for number, norms in answer_norms(model, seen, device).items():
            found[number] |= norms
    return found


def scored(
    layer: LayerAnalysis, criteria: Sequence[str], found: Mapping[str, Tensor], before: Tensor, without: Tensor | None
) -> LayerAnalysis:
    """The layer with what each criterion says of its experts.

    `found` are those of `cheap_scores`, `before` `[N]` the images' scores by the intact model, and `without` `[E, N]`
    those without each expert, where they were measured.
    """
    lost = [None] * len(layer.experts) if without is None else [mean_loss(before, scores) for scores in without]
    experts = []
    for expert, loss in zip(layer.experts, lost, strict=True):
        values = {name: float(scores[expert.expert]) for name, scores in found.items()} | {"load": expert.load}
        values |= {} if loss is None else {"ablation": loss.value}
        known = {name: values[name] for name in criteria if name in values}
        experts.append(replace(expert, scores=known, lost=loss))
    return replace(layer, experts=tuple(experts))


def agreements(
    layers: Sequence[LayerAnalysis], criteria: Sequence[str], before: Tensor, without: Mapping[int, Tensor]
) -> tuple[CriterionAgreement, ...]:
    """Of every criterion with ablation, in each layer and, where there are several, in all of them together.

    Ablation is held against itself, by one half of the images and by the other: a criterion can hardly agree better.
    """
    some = [layer for layer in layers if layer.layer in without]
    groups = [*([layer] for layer in some), *([some] if len(some) > 1 else [])]
    found = []
    for name in criteria if without else ():
        for group in groups:
            one, other = ([[e.scores[by] for e in layer.experts] for layer in group] for by in (name, "ablation"))
            if name == "ablation":
                one, other = ([_lost(before, without[layer.layer], half) for layer in group] for half in (0, 1))
            numbers = tuple(layer.layer for layer in group)
            found.append(CriterionAgreement(name, numbers, sum(map(len, one)), rank_agreement(one, other)))
    return tuple(found)


def _lost(before: Tensor, without: Tensor, half: int) -> list[float]:
    """What is lost without each expert by every other image."""
    lost: list[float] = (before - without)[:, half::2].double().mean(1).tolist()
    return lost
