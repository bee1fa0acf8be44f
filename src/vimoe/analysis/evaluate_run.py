"""A finished model on labelled images: its metrics with their interval, what it confuses, and its worst mistakes."""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimoe.analysis.ablation_scores import share_of_right_answers, share_of_right_labels
from vimoe.analysis.analyze_run import finished_run, run_images
from vimoe.analysis.paired import Estimate, mean_score
from vimoe.data.contact_sheet import to_pixels
from vimoe.data.images import ImageFiles, Images, fingerprint
from vimoe.data.label_table import SEPARATOR
from vimoe.data.listing import mask_layout
from vimoe.data.loaders import Batch, batches
from vimoe.data.registry import EMBEDDED, open_one_split
from vimoe.data.splits import Splits, check_classes
from vimoe.errors import UserError
from vimoe.tasks.classification import Classification
from vimoe.tasks.confusion_matrix import ConfusionMatrix
from vimoe.tasks.mask_inference import default_view
from vimoe.tasks.model import is_multilabel, load_model, model_classes, model_form
from vimoe.tasks.multilabel import Multilabel
from vimoe.tasks.multilabel_metrics import label_ranking
from vimoe.tasks.palette import cover
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.segmenter_folder import holds_segmenter, read_segmentation
from vimoe.tasks.task import Task
from vimoe.tasks.windows import View
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.vit.model_config import model_folder, read_config

# How many of the worst mistakes are kept: of labels, and of masks.
WORST, WORST_MASKS = 32, 12


class Mistake(NamedTuple):
    """An image that the model is wrong about."""

    place: int  # its number in the split
    path: str  # its file, empty where it has none
    pixels: NDArray[np.uint8]  # `[H, W, 3]` uint8: the image; for masks beside it the labels and the answer
    words: str  # what the answer is, and what was right


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on labelled images."""

    data: str  # what was scored, in words
    own: bool  # whether these are images of the run's own data
    metric: str  # what the score is: `top1`, `lrap` (see `label_ranking`) or `pixels`
    score: Estimate  # its mean over images
    summary: Mapping[str, float]  # all metrics, see `summary` of the task's metrics
    columns: Sequence[str]  # what the values by class are
    by_class: Sequence[tuple[Any, ...]]  # for each class its name and its values
    confusion: Tensor | None  # `[label, answer]` images, or pixels; None where an image has several labels
    # The worst ones first: wrong labels by how sure the model is, masks by their share of right pixels.
    mistakes: Sequence[Mistake]
    scores: Tensor  # `[N]` fp32, how right the answer to each image is, 0 to 1
    broken: Sequence[str]  # a line on each image that could not be read
    images: str  # what tells which images these are, the same for all that see them, in any form

    def to_dict(self) -> dict[str, Any]:
        """All numbers in plain JSON types."""
        header = ("class", *self.columns)
        return {
            **self.summary,
            "data": self.data,
            "metric": self.metric,
            "score": asdict(self.score),
            "broken": len(self.broken),
            "classes": [dict(zip(header, row, strict=True)) for row in self.by_class],
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "mistakes": [
                {"place": m.place, "path": m.path, "what": m.words.replace("\n", ", ")} for m in self.mistakes
            ],
        }


def evaluate(
    path: str | Path,
    *,
    dataset: str | None = None,
    dataset_args: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    split: str = "",
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
    look: Callable[[View], View] = lambda trained: trained,
) -> Evaluation:
    """Measure a finished run on its own test images, or a model on any labelled images; writes nothing.

    Args:
        dataset: The kind of other data; by default the run's, else `folder` or `ade20k`.
        data_dir: Other data, or where the run's own files lie now, which are known by their names and labels (not
            those of a run with `in_memory`).
        split: By default `test`, or what there is.
        look: How a segmentation model looks at images, from how it was trained.

    Raises UserError if there is no finished model, its images cannot be used, or none of them can be read.

    >>> evaluation = vimoe.evaluate("runs/digits")  # of the example of `train`
    >>> 0 <= evaluation.score.low <= evaluation.summary["top1"] <= evaluation.score.high
    True
    >>> evaluation.confusion.shape
    torch.Size([10, 10])
    """
    path = Path(path)
    folder, device = model_folder(path), pick_device(device)
    source = path, dataset, dataset_args, data_dir, split
    own = _own_images(*source)
    images, class_names, what = own or _other_images(*source, folder)
    task: Task = Classification(len(class_names))
    seen, broken = _Labels(len(class_names)), list[str]()
    if is_multilabel(folder):
        task, seen = Multilabel(len(class_names)), _LabelSets(len(class_names))
    elif holds_segmenter(folder):
        task, seen = Segmentation(len(class_names), view=look(default_view(folder))), _Masks(len(class_names))
    labelled = batches(_Numbered(images), task.batch_size(images, batch_size), workers, broken.append)
    metrics = task.measure(load_model(folder, device), seen.following(labelled), device, seen.watch)
    if not seen.places:
        raise UserError("none of the images can be read")
    scores, form = torch.cat(seen.scores), model_form(folder)
    mistakes = []
    for _, place, answer in sorted(seen.worst, reverse=True):
        image, target = images[place]
        pixels, words = seen.shown(to_pixels(image, form), target, answer, class_names)
        file = images.samples[place][0] if isinstance(images, ImageFiles) else ""
        mistakes.append(Mistake(place, str(file[0] if isinstance(file, tuple) else file), pixels, words))
    return Evaluation(
        data=what,
        own=own is not None,
        metric=seen.metric,
        score=mean_score(scores),
        summary=metrics.summary(),
        columns=metrics.columns,
        by_class=[(name, *values) for name, values in zip(class_names, metrics.per_class(), strict=True)],
        confusion=metrics.counts if isinstance(metrics, ConfusionMatrix) else seen.confusion,
        mistakes=mistakes,
        scores=scores,
        broken=broken,
        images=fingerprint(images, seen.places),
    )


class _Numbered(Images):
    """Images whose targets come with their place, which stays known where others are broken."""

    def __init__(self, images: Images) -> None:
        self.images, self.from_files = images, images.from_files

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = self.images[index]
        return image, (target, index)


class _Labels:
    """The answers of a classifier: scores, confusion, and the wrong ones that it is most sure of."""

    metric = "top1"

    def __init__(self, num_classes: int) -> None:
        self.places, self.scores = list[int](), list[Tensor]()
        self.worst: list[tuple[float, int, Any]] = []  # a heap: badness, place, answer
        self.confusion: Tensor | None = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def following(self, labelled: Iterator[Any]) -> Iterator[Batch]:
        """The batches without the places, which are noted."""
        for images, (targets, places) in labelled:
            self.places += places.tolist()
            yield images, targets

    def watch(self, logits: Tensor, labels: Tensor) -> None:
        probs, answers = logits.softmax(-1).max(-1)
        self.scores.append(share_of_right_labels(logits, labels))
        assert self.confusion is not None
        self.confusion.index_put_((labels, answers), torch.ones_like(labels), accumulate=True)
        for i in (answers != labels).nonzero()[:, 0].tolist():
            self._keep(float(probs[i]), self.places[i - len(labels)], (int(answers[i]), float(probs[i])), WORST)

    def _keep(self, badness: float, place: int, answer: Any, most: int) -> None:
        heapq.heappush(self.worst, (badness, place, answer))
        if len(self.worst) > most:
            heapq.heappop(self.worst)

    def shown(
        self, image: NDArray[np.uint8], label: Any, answer: Any, names: Sequence[str]
    ) -> tuple[NDArray[np.uint8], str]:
        """An image with the words on it."""
        return image, f"{names[answer[0]]} {answer[1]:.0%}\nis {names[int(label)]}"


class _LabelSets(_Labels):
    """The answers of a classifier of any number of labels: scores, and those that it is most wrong about."""

    metric = "lrap"

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.confusion = None

    def watch(self, logits: Tensor, targets: Tensor) -> None:
        probs = logits.sigmoid()
        self.scores.append(label_ranking(logits, targets))
        for i, (off, label) in enumerate(zip(*(probs - targets).abs().max(-1), strict=True)):
            if off > 0.5:
                self._keep(float(off), self.places[i - len(targets)], (int(label), float(probs[i, label])), WORST)

    def shown(
        self, image: NDArray[np.uint8], label: Any, answer: Any, names: Sequence[str]
    ) -> tuple[NDArray[np.uint8], str]:
        """An image with the label that is most wrong and those that are right."""
        right = SEPARATOR.join(names[i] for i in label.nonzero()[:, 0])
        return image, f"{names[answer[0]]} {answer[1]:.0%}\nis {right or 'none'}"


class _Masks(_Labels):
    """The answers of a segmentation model: scores and worst masks; its metrics are the confusion matrix."""

    metric = "pixels"

    def watch(self, answers: Tensor, masks: Tensor) -> None:
        scores = share_of_right_answers(answers, masks)
        self.scores.append(scores)
        for i, score in enumerate(scores.tolist()):
            self._keep(1 - score, self.places[i - len(masks)], (answers[i].byte().numpy(), score), WORST_MASKS)

    def shown(
        self, image: NDArray[np.uint8], label: Any, answer: Any, names: Sequence[str]
    ) -> tuple[NDArray[np.uint8], str]:
        """The image, its labels and the answer side by side."""
        covered = [cover(image, mask, len(names)) for mask in (label.numpy(), answer[0])]
        return np.concatenate([image, *covered], axis=1), f"{answer[1]:.0%} of the pixels right: image, labels, answer"


def _as_many(names: tuple[str, ...], answers: int) -> tuple[str, ...]:
    """Names for all that a model without names tells apart; labels that are numbers need not all be there.

    Raises UserError if the images have other classes.
    """
    numbers = tuple(map(str, range(answers)))
    if len(names) != answers and names != numbers[: len(names)]:
        raise UserError(f"the images are of {len(names)} classes, and the model tells {answers} apart")
    return names if len(names) == answers else numbers


Choice = tuple[Images, tuple[str, ...], str]


def _own_images(
    path: Path, dataset: str | None, dataset_args: Mapping[str, Any] | None, data_dir: str | None, split: str
) -> Choice | None:
    """A split of the run's own data, its classes, and what it is; None where the arguments or the folder say else."""
    if not (path / "recipe.yaml").exists() or dataset or dataset_args:
        return None
    run, recipe = finished_run(path)
    split = split or "test"
    other = data_dir and (not recipe.data_dir or Path(data_dir).resolve() != Path(recipe.data_dir).resolve())
    if split not in ("train", "val", "test"):
        return None
    splits = _moved_images(run, recipe, data_dir) if data_dir and other else run_images(run, recipe)
    if splits is None:
        return None
    if split == "test" and splits.test is splits.val:
        split = "val (there is no test)"
    return getattr(splits, split.split()[0]), splits.class_names, f"{split} of the run's own data"


def _moved_images(run: RunFolder, recipe: Recipe, data_dir: str) -> Splits | None:
    """The run's own images where they lie now; None where other ones lie there."""
    if not (known := run.read_train_images()):
        return None
    try:
        splits = run_images(run, recipe, data_dir=data_dir)
    except UserError:
        return None
    return splits if fingerprint(splits.train) == known else None


def _other_images(
    path: Path,
    dataset: str | None,
    dataset_args: Mapping[str, Any] | None,
    data_dir: str | None,
    split: str,
    folder: Path,
) -> Choice:
    """The same of any data: all of it, or of one split."""
    of_pixels = holds_segmenter(folder)
    masks = (data_dir and mask_layout(Path(data_dir))) or "ade20k"
    chosen = dataset or (masks if of_pixels else "folder")
    if not dataset and (path / "recipe.yaml").exists():
        recipe = load_recipe(path / "recipe.yaml")
        chosen = chosen if data_dir and recipe.dataset in EMBEDDED else recipe.dataset
        data_dir = data_dir or recipe.data_dir
    known = model_classes(folder)
    reduce = read_segmentation(folder).reduce_zero_label if of_pixels else True
    images, names, part = open_one_split(
        chosen, data_dir, model_form(folder), split, known, reduce, dataset_args, is_multilabel(folder)
    )
    check_classes(names, known or names, "the images have other classes than the model")
    if known is None and not of_pixels:
        names = _as_many(names, read_config(folder)["num_classes"])
    where = data_dir or chosen
    return images, names, f"{part} of {where}" if part else f"{where}, all of it"
