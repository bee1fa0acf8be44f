"""The causal test: the same held-out pictures, scored while MoE layers are disturbed.

Disturbing block l changes nothing before it. So a batch runs once undisturbed, each block's output is kept, and for
every disturbance the blocks before it hand on what they gave the first time: I disturbances of each of L MoE layers
cost, for a picture, D + I Σ (D - l) blocks instead of D (1 + I L). It is the model's own forward that runs, whatever
the family, so that position embeddings, masks and heads need no knowledge here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vimoe.analysis.interventions import Answer, standing_in
from vimoe.data.masks import IGNORE
from vimoe.tasks.classification import evaluating
from vimoe.vit.blocks import find_backbone

# How right an answer is: outputs and targets of a batch to `[B]` scores in 0 to 1.
Score = Callable[[Tensor, Tensor], Tensor]
Disturbance = Mapping[int, Answer]


def share_of_right_labels(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 for each picture whose most probable class is its label, else 0: `[B, classes]` and `[B]` to `[B]`."""
    return (outputs.argmax(-1).cpu() == labels.cpu()).float()


def share_of_right_pixels(outputs: Tensor, masks: Tensor, ignore: int = IGNORE) -> Tensor:
    """Share of each picture's labelled pixels whose class is right, 1 where none is labelled.

    Args:
        outputs: `[B, classes, H, W]`.
        masks: `[B, H, W]`.
        ignore: What unlabelled pixels say.
    """
    masks = masks.cpu()
    labelled = (masks != ignore).flatten(1)
    right = (outputs.argmax(1).cpu() == masks).flatten(1) & labelled
    return torch.where(labelled.any(1), right.sum(1) / labelled.sum(1).clamp(min=1), 1.0)


def picture_scores(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    score: Score = share_of_right_labels,
    device: str = "cpu",
) -> Tensor:
    """`[N]` fp32 score of every picture, by any model."""
    with evaluating(model):
        return torch.cat([score(model(pictures.to(device)), targets) for pictures, targets in batches])


def disturbed_scores(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    disturbances: Sequence[Disturbance],
    score: Score = share_of_right_labels,
    device: str = "cpu",
) -> Tensor:
    """Score every picture under every disturbance.

    Args:
        model: An upcycled model.
        batches: Pictures and targets.
        disturbances: What stands in for which layers, each tried by itself.
        score: How right an answer is.
        device: Where to compute.

    Returns:
        `[disturbances, pictures]` fp32 scores: four bytes for each.
    """
    blocks = find_backbone(model).blocks
    found = []
    with evaluating(model):
        for pictures, targets in batches:
            images = pictures.to(device)
            first = max((min(disturbance) for disturbance in disturbances), default=0)
            kept = _run_and_keep(model, images, blocks[:first]) if len(disturbances) > 1 else []
            rows = []
            for disturbance in disturbances:
                start = min(disturbance) if kept else 0
                with _handing_on(blocks[:start], kept[:start]), standing_in(model, disturbance):
                    rows.append(score(model(images), targets))
            found.append(torch.stack(rows) if rows else torch.zeros(0, len(pictures)))
    return torch.cat(found, dim=1)


def block_evaluations(depth: int, disturbances: Sequence[Disturbance]) -> int:
    """Blocks that `disturbed_scores` computes for one picture: a lone disturbance runs the model once."""
    if len(disturbances) == 1:
        return depth
    return depth + sum(depth - min(disturbance) for disturbance in disturbances) if disturbances else 0


def _run_and_keep(model: nn.Module, images: Tensor, blocks: Sequence[nn.Module]) -> list[Any]:
    outputs: list[Any] = []
    handles = [block.register_forward_hook(lambda _, __, output: outputs.append(output)) for block in blocks]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


@contextmanager
def _handing_on(blocks: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Let blocks answer what they answered before, without computing it."""
    for block, output in zip(blocks, outputs, strict=True):
        block.__dict__["forward"] = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
