"""Everything that is measured on a model, from held-out images to a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vimoe.analysis.ablation_scores import Score, ablated_scores, block_evaluations, share_of_right_labels
from vimoe.analysis.ablations import Answer, layer_ablations, without_experts
from vimoe.analysis.analysis_result import (
    ABLATIONS,
    AblationResult,
    Analysis,
    ExpertAnalysis,
    LayerAnalysis,
    Neighbours,
)
from vimoe.analysis.behaviour import Behaviour, agreement
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.expert_similarity import classes_of_expert, output_similarity, weight_similarity
from vimoe.analysis.paired import mean_loss, mean_score
from vimoe.analysis.planning import plan_layers
from vimoe.analysis.specialisation import specialisation
from vimoe.errors import UserError
from vimoe.tasks.classification import evaluating
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.plan import Plan
from vimoe.vit.upcycle import get_config

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def analyze(
    model: nn.Module,
    batches: Batches,
    class_names: Sequence[str],
    *,
    split: str = "val",
    device: str = "cpu",
    shuffles: int = 199,
    max_drop: float = 0.0,
    metric: str = "top1",
    score: Score = share_of_right_labels,
    classes: Callable[[Tensor], Tensor] = lambda labels: labels,
    paths: Mapping[int, str] | None = None,
) -> tuple[RoutingCounts, Analysis, Plan]:
    """Measure every MoE layer of a model, ablate it, and plan what to keep.

    Reads the images once for the routing, once for all ablations of single layers, and once for each step of
    the plan. Memory grows by some bytes for each image, layer and ablation, see `Behaviour`.

    Args:
        model: An upcycled model, on `device`.
        batches: Gives the held-out images with their targets, the same ones in the same order at every call.
        class_names: By number.
        split: What to call these images.
        device: Where to compute.
        shuffles: Shuffled tables behind every chance level.
        max_drop: Percentage points that the plan may lose beyond noise.
        metric: What `score` is called.
        score: How right an answer is, 0 to 1 an image.
        classes: Targets to the class of each image `[B]`, or of each patch `[B, P]` with -1 for none.
        paths: The files of the images by place, where there are files.

    Raises:
        UserError: There is no MoE layer, no image, a single class, or a router whose weights are not finite.
    """
    config = get_config(model)
    if config is None:
        raise UserError("this model has no MoE layer to analyze: it is dense, or was pruned")
    if len(class_names) < 2:
        raise UserError("the images have a single class, and routing cannot follow what does not differ")
    for number, layer in moe_layers(model).items():
        if not layer.router.weight.isfinite().all():
            raise UserError(f"the router of block {number} holds weights that are not finite: was the training sound?")
    behaviour, before = _observe(model, batches, score, classes, device)
    observed = {n: behaviour.observations(n, len(class_names)) for n in behaviour.layers}
    tables = {n: seen.table() for n, seen in observed.items()}
    if not next(iter(tables.values())).sum():
        raise UserError("no image has a class")
    loads = {n: torch.tensor(table.sum(0) / table.sum(), dtype=torch.float32) for n, table in tables.items()}
    modules = moe_layers(model)
    ablations: list[tuple[int, str, dict[int, Answer]]] = [
        (number, name, {number: answer})
        for number, layer in modules.items()
        for name, answer in layer_ablations(number, layer, config, loads[number], behaviour.layers[number].mass).items()
    ]
    plain = {number: change[number] for number, name, change in ablations if name == "pruned"}
    after = ablated_scores(model, batches(), [change for *_, change in ablations], score, device)
    results: dict[int, list[AblationResult]] = {number: [] for number in modules}
    for (number, name, _), scores in zip(ablations, after, strict=True):
        results[number].append(AblationResult(name, 100 * scores.double().mean().item(), mean_loss(before, scores)))
    layers = tuple(
        LayerAnalysis(
            layer=number,
            specialisation=specialisation(observed[number], shuffles),
            confidence=kept.confidence / kept.choices,
            margin=kept.margin / kept.choices,
            stability=kept.stayed / kept.choices,
            ablations=tuple(sorted(results[number], key=lambda k: list(ABLATIONS).index(k.name))),
            experts=tuple(
                ExpertAnalysis(
                    e,
                    float(loads[number][e]),
                    classes_of_expert(tables[number], e),
                    *kept.examples(e),
                )
                for e in range(kept.num_experts)
            ),
            weight_similarity=_nested(weight_similarity(modules[number].experts)),
            output_similarity=_nested(output_similarity(kept.gram)),
        )
        for number, kept in behaviour.layers.items()
    )
    depth, tried = len(find_backbone(model).blocks), 0

    def try_out(changes: Mapping[int, tuple[int, ...]]) -> Tensor:
        nonlocal tried
        tried += 1
        answers = {n: without_experts(modules[n], kept) if kept else plain[n] for n, kept in changes.items()}
        return ablated_scores(model, batches(), [answers], score, device)[0]

    plan, steps = plan_layers(layers, before, try_out, max_drop, config.top_k)
    by_patch = behaviour.labels[0].ndim > 1
    units = sum(part.size for part in behaviour.labels)
    named = {place for layer in layers for e in layer.experts for place in (*e.confident, *e.unsure)}
    analysis = Analysis(
        metric=metric,
        split=split,
        images=behaviour.images,
        unit="patch" if by_patch or config.routing == "token" else "image",
        left_out=units - sum(int((part >= 0).sum()) for part in behaviour.labels),
        class_names=tuple(class_names),
        score=mean_score(before),
        depth=depth,
        layers=layers,
        neighbours=tuple(Neighbours(a, b, agreement(joint)) for (a, b), joint in behaviour.joint.items()),
        steps=steps,
        max_drop=max_drop,
        block_evaluations=block_evaluations(depth, [change for *_, change in ablations]) + tried * depth,
        without_reuse=depth * (1 + len(ablations) + tried),
        paths={place: path for place, path in (paths or {}).items() if place in named},
    )
    return RoutingCounts.of(tables, tuple(class_names)), analysis, plan


def _observe(
    model: nn.Module, batches: Batches, score: Score, classes: Callable[[Tensor], Tensor], device: str
) -> tuple[Behaviour, Tensor]:
    behaviour, scores = Behaviour(model), []
    with evaluating(model):
        for images, targets in batches():
            scores.append(score(behaviour.watch(images.to(device), classes(targets)), targets))
    if not behaviour.images:
        raise UserError("there is no image to analyze the model on")
    return behaviour, torch.cat(scores)


def _nested(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
