"""A finished classifier at work: on labelled images, and on any images, from its folder alone."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vimoe.data.decode import SUFFIXES, BrokenImageError, read_image
from vimoe.data.folder import evaluation_transform, image_form
from vimoe.data.loaders import batches
from vimoe.data.registry import open_dataset
from vimoe.data.splits import check_classes
from vimoe.errors import UserError
from vimoe.tasks.classification import classify, evaluating
from vimoe.tasks.classification_metrics import ClassificationMetrics
from vimoe.vit.blocks import moe_layers
from vimoe.vit.checkpoint import load, read_config
from vimoe.vit.recording import record_routing


class Evaluation(NamedTuple):
    """What came of an evaluation: metrics, class names, and lines on broken images."""

    metrics: ClassificationMetrics
    class_names: tuple[str, ...]
    broken: list[str]


class Prediction(NamedTuple):
    """What a model says about an image.

    Attributes:
        path: The image.
        labels: The most probable labels with their probabilities, best first.
        experts: By block number, the experts chosen for the image (under `image` routing).
    """

    path: Path
    labels: list[tuple[str, float]]
    experts: dict[int, list[int]]


def model_folder(path: Path) -> Path:
    """The model folder of a run, or the path itself."""
    return path / "model" if (path / "model" / "config.json").exists() else path


def evaluate_folder(
    path: Path,
    dataset: str,
    data_dir: str | None,
    split: str,
    batch_size: int,
    workers: int,
    device: str,
    names: tuple[str, str, str] = ("", "", ""),
    dataset_args: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a model folder on the `train`, `val` or `test` split of labelled images.

    `names` are what these splits are called where they do not have one of the usual names; `dataset_args` are those
    of a recipe.

    Raises:
        UserError: The model or the data cannot be used, or their classes differ.
    """
    folder = model_folder(path)
    config = read_config(folder)
    form = image_form(config["pretrained_cfg"])
    splits = open_dataset(dataset, data_dir, form, splits=names, dataset_args=dataset_args)
    labels = config.get("label_names")
    if labels is not None:
        check_classes(splits.class_names, labels, "the images have other classes than the model")
    broken: list[str] = []
    images = getattr(splits, split)
    labelled = batches(images, batch_size, workers, broken.append)
    metrics = classify(load(folder, device), labelled, len(splits.class_names), device)
    return Evaluation(metrics, splits.class_names, broken)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Files as they are named, folders searched through, globs expanded; in this order, each once.

    Raises:
        UserError: A name matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f"there is no image at {pattern}")
        for match in map(Path, matches):
            inside = sorted(p for p in match.rglob("*") if p.suffix.lower() in SUFFIXES) if match.is_dir() else [match]
            found |= dict.fromkeys(inside)
    if not found:
        raise UserError(f"there is no image in {' '.join(patterns)}")
    return list(found)


def predict(
    path: Path, images: Sequence[Path], top_k: int, batch_size: int, device: str, on_broken: Callable[[str], None]
) -> Iterator[Prediction]:
    """What the model of a folder says about image files, in their order; broken ones are told and left out.

    Raises:
        UserError: The model cannot be used.
    """
    folder = model_folder(path)
    config = read_config(folder)
    transform = evaluation_transform(image_form(config["pretrained_cfg"]))
    model = load(folder, device)
    names = config.get("label_names") or [str(i) for i in range(int(config["num_classes"]))]
    for start in range(0, len(images), batch_size):
        read = []
        for image in images[start : start + batch_size]:
            try:
                read.append((image, transform(read_image(image))))
            except BrokenImageError as error:
                on_broken(str(error))
        if read:
            yield from _answers(model, [p for p, _ in read], torch.stack([x for _, x in read]).to(device), names, top_k)


def _answers(
    model: nn.Module, paths: list[Path], images: torch.Tensor, names: Sequence[str], top_k: int
) -> Iterator[Prediction]:
    experts: dict[int, torch.Tensor] = {}
    with evaluating(model):
        if per_image := {n: layer for n, layer in moe_layers(model).items() if layer.routing == "image"}:
            with record_routing(model) as record:
                logits = model(images)
            experts = {number: record.expert_ids[number] for number in per_image}
        else:
            logits = model(images)
    probs, labels = logits.float().softmax(-1).cpu().topk(min(top_k, logits.shape[-1]))
    for i, path in enumerate(paths):
        best = [(names[label], p) for label, p in zip(labels[i].tolist(), probs[i].tolist(), strict=True)]
        yield Prediction(path, best, {number: ids[i].tolist() for number, ids in experts.items()})
