"""A finished model of any task on labelled images: metrics of the whole and by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vimoe.data.images import Images
from vimoe.tasks.classification import Classification
from vimoe.tasks.model import load_model
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.segmenter_folder import holds_segmenter
from vimoe.tasks.task import Task
from vimoe.tasks.windows import View


class Evaluation(NamedTuple):
    """What came of an evaluation.

    Attributes:
        summary: All metrics of the whole, and `images`, how many there were.
        columns: What the values by class are.
        per_class: By class, its name and its values.
        broken: A line on every image that could not be read.
    """

    summary: dict[str, float]
    columns: tuple[str, ...]
    per_class: list[tuple[Any, ...]]
    broken: list[str]


def evaluate_folder(
    folder: Path,
    images: Images,
    class_names: tuple[str, ...],
    device: str,
    batch_size: int = 64,
    workers: int = 0,
    view: View | None = None,
) -> Evaluation:
    """Evaluate a model folder on labelled images, or on images with masks.

    Args:
        folder: The model folder.
        images: What it is evaluated on.
        class_names: By label.
        device: Where to compute.
        batch_size: Images at once (classification).
        workers: Processes that decode.
        view: How a segmentation model looks at the images.

    Raises:
        UserError: The model cannot be used.
    """
    classes, broken = len(class_names), list[str]()
    task: Task = Segmentation(classes, view=view) if holds_segmenter(folder) else Classification(classes)
    metrics = task.measure(load_model(folder, device), images, device, workers, broken.append, batch_size)
    rows = [(name, *values) for name, values in zip(class_names, metrics.per_class(), strict=True)]
    return Evaluation(metrics.summary(), metrics.columns, rows, broken)
