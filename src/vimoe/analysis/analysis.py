"""Everything that is measured on a model, from held-out images to a plan."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vimoe.analysis.ablation_scores import ablated_scores
from vimoe.analysis.ablations import Answer, layer_ablations, without_experts
from vimoe.analysis.analysis_result import AblationResult, Analysis, ExpertAnalysis, LayerAnalysis, Neighbours
from vimoe.analysis.behaviour import Behaviour, agreement
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.expert_scores import agreements, cheap_scores, check_experts, leaving_one_out, scored
from vimoe.analysis.expert_similarity import classes_of_expert, output_similarity
from vimoe.analysis.held_out import HeldOut
from vimoe.analysis.paired import mean_loss, mean_score
from vimoe.analysis.planning import MAX_DROP, plan_layers, removal_order
from vimoe.analysis.specialisation import Specialisation, specialisation
from vimoe.errors import UserError
from vimoe.moe.config import MoEConfig
from vimoe.moe.layer import MoELayer
from vimoe.tasks.classification import evaluating
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.plan import Plan
from vimoe.vit.upcycle import get_config


def analyze(
    model: nn.Module,
    seen: HeldOut,
    class_names: Sequence[str],
    *,
    split: str = "val",
    device: str = "cpu",
    shuffles: int = 199,
    max_drop: float = MAX_DROP,
    places: Sequence[int] | None = None,
    split_images: int = 0,
    criteria: Sequence[str] = (),
    initial_routers: Mapping[int, Tensor] | None = None,
) -> tuple[RoutingCounts, Analysis, Plan]:
    """Measure every MoE layer of a model, ablate it, and plan what to keep.

    Reads the images once for the routing, once for all ablations of single layers, and once for each step of
    the plan after the first change; and once for `reap` and `activation`. Memory grows by some bytes for each image,
    layer and ablation, see `Behaviour`.

    Args:
        seen: The held-out images, and how right an answer to them is.
        shuffles: Shuffled tables behind every chance level.
        max_drop: Percentage points that the plan may lose.
        places: Where each image stands in its split, if these are a sample.
        split_images: How many the split holds then.
        criteria: Of `expert_criteria.CRITERIA`, what each expert is scored by; the first but `ablation` gives the order
            in which the plan tries to remove experts (see `removal_order`).
        initial_routers: For `router-change`, the routers' weights before training by block.

    Raises UserError if there is no MoE layer, no image, a single class, a router whose weights are not finite, or a
    criterion that is unknown or that the model does not allow.
    """
    config = _checked(model, class_names)
    check_experts(model, criteria, initial_routers or {})
    modules = moe_layers(model)
    behaviour, before = _watch(model, seen, device)
    counts = behaviour.counts(tuple(class_names))
    if not counts.counts.any():
        raise UserError("no image has a class")
    measures = {
        number: specialisation(behaviour.observations(number, len(class_names)), shuffles, bool(config.guide))
        for number in modules
    }
    ablations = _ablations(modules, config, behaviour, measures)
    singly = [{number: answer} for number, found in ablations.items() for answer in found.values()]
    left = leaving_one_out(model) if "ablation" in criteria else {}
    singly += [{number: without_experts(modules[number], kept)} for number, each in left.items() for kept in each]
    scores = iter(ablated_scores(model, seen.batches(), singly, seen.score, device))
    after = {number: {name: next(scores) for name in found} for number, found in ablations.items()}
    without = {number: torch.stack([next(scores) for _ in each]) for number, each in left.items()}
    at = range(behaviour.images) if places is None else places
    cheap = cheap_scores(model, criteria, seen, initial_routers or {}, device)
    layers = tuple(
        scored(
            _measured(behaviour, counts, n, measures[n], before, after[n], at),
            criteria,
            cheap[n],
            before,
            without.get(n),
        )
        for n in behaviour.layers
    )

    def try_out(changes: Mapping[int, tuple[int, ...]]) -> Tensor:
        kept = changes.items()
        together = {n: without_experts(modules[n], some) if some else ablations[n]["pruned"] for n, some in kept}
        return ablated_scores(model, seen.batches(), [together], seen.score, device)[0]

    alone = {number: found["pruned"] for number, found in after.items()}
    order = removal_order(layers, criteria) if criteria else ()
    parts, steps = plan_layers(layers, before, alone, try_out, max_drop, config.top_k, order)
    analysis = Analysis(
        metric=seen.metric,
        split=split,
        images=behaviour.images,
        split_images=split_images or behaviour.images,
        unit="patch" if behaviour.by_patch or config.routing == "token" else "image",
        class_names=tuple(class_names),
        score=mean_score(before),
        depth=len(find_backbone(model).blocks),
        layers=layers,
        neighbours=tuple(Neighbours(a, b, agreement(joint)) for (a, b), joint in behaviour.joint.items()),
        steps=steps,
        max_drop=max_drop,
        paths={},
        agreements=agreements(layers, criteria, before, without),
    )
    return counts, analysis, Plan(parts, split)


def _checked(model: nn.Module, class_names: Sequence[str]) -> MoEConfig:
    config = get_config(model)
    if config is None:
        raise UserError("this model has no MoE layer to analyze: it is dense, or was pruned")
    config.check_choices("analyze")
    config.check_layers_apart()
    if len(class_names) < 2:
        raise UserError("the images have a single class, and routing cannot follow what does not differ")
    for number, layer in moe_layers(model).items():
        if not layer.router.weight.isfinite().all():
            raise UserError(f"the router of block {number} holds weights that are not finite: was the training sound?")
    return config


def _watch(model: nn.Module, seen: HeldOut, device: str) -> tuple[Behaviour, Tensor]:
    """One pass over the images: what routers and experts do, and `[N]` how right the answers are."""
    behaviour, scores = Behaviour(model), []
    with evaluating(model):
        for images, targets in seen.batches():
            scores.append(seen.score(behaviour.watch(images.to(device), seen.classes(targets)), targets))
    if not behaviour.images:
        raise UserError("there is no image to analyze the model on")
    return behaviour, torch.cat(scores)


def _ablations(
    layers: Mapping[int, MoELayer], config: MoEConfig, behaviour: Behaviour, measures: Mapping[int, Specialisation]
) -> dict[int, dict[str, Answer]]:
    """Every ablation of every layer, by block and name."""
    found = {}
    for number, layer in layers.items():
        load = torch.tensor(measures[number].load, dtype=torch.float32)
        found[number] = layer_ablations(number, layer, config, load, behaviour.layers[number].mass)
    return found


def _measured(
    behaviour: Behaviour,
    counts: RoutingCounts,
    number: int,
    measure: Specialisation,
    before: Tensor,
    after: Mapping[str, Tensor],
    places: Sequence[int],
) -> LayerAnalysis:
    kept, table = behaviour.layers[number], counts.layer(number)

    def named(images: Sequence[int]) -> tuple[int, ...]:
        return tuple(places[image] for image in images)

    return LayerAnalysis(
        layer=number,
        specialisation=measure,
        confidence=kept.confidence / kept.choices,
        margin=kept.margin / kept.choices,
        stability=kept.stayed / kept.choices,
        ablations=tuple(AblationResult(name, mean_loss(before, scores)) for name, scores in after.items()),
        experts=tuple(
            ExpertAnalysis(e, measure.load[e], classes_of_expert(table, e), named(best), named(worst))
            for e, (best, worst) in ((e, kept.examples(e)) for e in range(kept.num_experts))
        ),
        output_similarity=tuple(tuple(row) for row in output_similarity(kept.gram).tolist()),
    )
