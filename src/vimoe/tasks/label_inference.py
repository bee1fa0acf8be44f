"""A finished classifier at work on any images, from its folder alone."""

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from vimoe.data.decode import SUFFIXES, read_image
from vimoe.data.images import ImageFiles, labelled
from vimoe.data.listing import files_below
from vimoe.data.loaders import batches
from vimoe.data.transforms import evaluation_transform
from vimoe.errors import UserError
from vimoe.tasks.classification import evaluating
from vimoe.tasks.model import is_multilabel, model_classes, model_form
from vimoe.tasks.task import finite
from vimoe.vit.blocks import moe_layers
from vimoe.vit.checkpoint import load
from vimoe.vit.recording import record_routing


class Prediction(NamedTuple):
    """What a model says about an image."""

    path: Path
    labels: list[tuple[str, float]]  # the most probable labels with their probabilities, best first
    experts: dict[int, list[int]]  # by block number, the experts chosen for the image (under `image` routing)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Files, those of folders and of globs, in this order, each once. Raises UserError if a name matches nothing."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [pattern] if pattern and Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f"there is no image at {pattern or repr(pattern)}")
        for match in map(Path, matches):
            found |= dict.fromkeys(files_below(match, SUFFIXES) if match.is_dir() else [match])
    if not found:
        raise UserError(f"there is no image in {' '.join(patterns)}")
    return list(found)


def predict_labels(
    folder: Path,
    images: Sequence[Path],
    top_k: int,
    batch_size: int,
    device: str,
    on_broken: Callable[[str], None],
    workers: int = 0,
) -> Iterator[Prediction]:
    """What the model of a folder says about image files, in their order; broken ones are noted and left out.

    `workers` processes decode the next images meanwhile.

    Raises UserError if the model cannot be used.
    """
    model = load(folder, device)
    files = ImageFiles(
        [(path, place) for place, path in enumerate(images)],
        partial(labelled, read_image),
        evaluation_transform(model_form(folder)),
    )
    names, several = model_classes(folder), is_multilabel(folder)
    for seen, places in batches(files, batch_size, workers, on_broken):
        yield from _answers(model, [images[place] for place in places.tolist()], seen.to(device), names, top_k, several)


def _answers(
    model: nn.Module,
    paths: list[Path],
    images: torch.Tensor,
    names: Sequence[str] | None,
    top_k: int,
    several: bool,
) -> Iterator[Prediction]:
    per_image = [number for number, layer in moe_layers(model).items() if layer.routing == "image"]
    with evaluating(model), record_routing(model) if per_image else nullcontext() as record:
        logits = finite(model(images).float())
    experts = {number: record.expert_ids[number] for number in per_image} if record else {}
    if names is not None and len(names) != logits.shape[-1]:
        raise UserError(f"the model tells {logits.shape[-1]} classes apart, and its config.json names {len(names)}")
    probs, labels = (logits.sigmoid() if several else logits.softmax(-1)).cpu().topk(min(top_k, logits.shape[-1]))
    for i, path in enumerate(paths):
        best = zip(labels[i].tolist(), probs[i].tolist(), strict=True)
        answers = [(names[label] if names else str(label), p) for label, p in best]
        yield Prediction(path, answers, {number: ids[i].tolist() for number, ids in experts.items()})
