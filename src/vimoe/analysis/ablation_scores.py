"""The causal test: the same held-out images, scored while MoE layers are ablated.

Ablating block l changes nothing before it. So a batch runs once intact, each block's output is kept, and for
every ablation the blocks before it hand on what they gave the first time: I ablations of each of L MoE layers
cost, for an image, D + I Σ (D - l) blocks instead of D (1 + I L). It is the model's own forward that runs, whatever
the family, so that position embeddings, masks and heads need no knowledge here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vimoe.analysis.ablations import Answer, ablated
from vimoe.data.masks import IGNORE
from vimoe.tasks.classification import evaluating
from vimoe.vit.blocks import find_backbone

# How right an answer is: outputs and targets of a batch to `[B]` scores in 0 to 1.
Score = Callable[[Tensor, Tensor], Tensor]
Ablation = Mapping[int, Answer]


def share_of_right_labels(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 for each image whose most probable class is its label, else 0: `[B, classes]` and `[B]` to `[B]`."""
    return (outputs.argmax(-1).cpu() == labels.cpu()).float()


def share_of_right_pixels(outputs: Tensor, masks: Tensor) -> Tensor:
    """Share of right labelled pixels, 1 where none is labelled: `[B, classes, H, W]` and `[B, H, W]` to `[B]`."""
    return share_of_right_answers(outputs.argmax(1).cpu(), masks.cpu())


def share_of_right_answers(answers: Tensor, masks: Tensor) -> Tensor:
    """The same of the most probable classes, `[B, H, W]`."""
    labelled = (masks != IGNORE).flatten(1)
    right = (answers == masks).flatten(1) & labelled
    return torch.where(labelled.any(1), right.sum(1) / labelled.sum(1).clamp(min=1), 1.0)


def image_scores(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    score: Score = share_of_right_labels,
    device: str = "cpu",
) -> Tensor:
    """`[N]` fp32 score of every image, by any model."""
    with evaluating(model):
        return torch.cat([score(model(images.to(device)), targets) for images, targets in batches])


def ablated_scores(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    ablations: Sequence[Ablation],
    score: Score = share_of_right_labels,
    device: str = "cpu",
) -> Tensor:
    """`[ablations, images]` fp32 score of every image under every ablation (what stands in for which layers)."""
    blocks = find_backbone(model).blocks
    found = []
    with evaluating(model):
        for images, targets in batches:
            images = images.to(device)
            first = max((min(ablation) for ablation in ablations), default=0)
            kept = _run_and_keep(model, images, blocks[:first]) if len(ablations) > 1 else []
            rows = []
            for ablation in ablations:
                start = min(ablation) if kept else 0
                with _handing_on(blocks[:start], kept[:start]), ablated(model, ablation):
                    rows.append(score(model(images), targets))
            found.append(torch.stack(rows) if rows else torch.zeros(0, len(images)))
    return torch.cat(found, dim=1)


def _run_and_keep(model: nn.Module, images: Tensor, blocks: Sequence[nn.Module]) -> list[Any]:
    outputs: list[Any] = []
    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.register_forward_hook(lambda _, __, output: outputs.append(output)))
        model(images)
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
