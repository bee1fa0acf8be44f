import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from vimoe.data.masks import IGNORE
from vimoe.errors import UserError
from vimoe.tasks.confusion_matrix import ConfusionMatrix


def random_images(classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, (4, 9, 11), generator=drawn)
    target = torch.where(torch.rand(prediction.shape, generator=drawn) < 0.4, prediction, prediction.flip(0))
    return prediction, target.masked_fill(torch.rand(target.shape, generator=drawn) < 0.2, IGNORE)


@pytest.mark.parametrize("classes", [2, 5, 19])
def test_figures_agree_with_torchmetrics_however_the_images_are_batched(classes: int) -> None:
    prediction, target = random_images(classes, seed=classes)
    matrix = ConfusionMatrix(classes)
    for i in range(4):
        matrix.add(prediction[i], target[i])
    args = {"num_classes": classes, "ignore_index": IGNORE}
    iou = MulticlassJaccardIndex(**args, average="none")(prediction, target)
    acc = MulticlassAccuracy(**args, average="none")(prediction, target)
    found, per_class = matrix.metrics(), matrix.per_class()
    assert found["miou"] == pytest.approx(100 * iou.mean().item(), rel=1e-5)
    assert found["macc"] == pytest.approx(100 * acc.mean().item(), rel=1e-5)
    right = MulticlassAccuracy(**args, average="micro")(prediction, target)
    assert found["aacc"] == pytest.approx(100 * right.item(), rel=1e-5)
    assert [iou for _, iou, _ in per_class] == pytest.approx((100 * iou).tolist(), rel=1e-5)
    assert [acc for _, _, acc in per_class] == pytest.approx((100 * acc).tolist(), rel=1e-5)
    assert [pixels for pixels, _, _ in per_class] == [int((target == c).sum()) for c in range(classes)]


def test_figures_of_a_case_worked_by_hand() -> None:
    # label   0 0 0 1 1 and one unlabelled pixel
    # answer  0 0 1 1 2        2
    matrix = ConfusionMatrix(4)
    matrix.add(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 1, 1, IGNORE]))
    # class 0: 2 of 3; class 1: 1 of 4 - 1; class 2 is predicted in vain and counts as 0; class 3 is absent
    assert matrix.metrics() == pytest.approx(
        {"miou": 100 * (2 / 3 + 1 / 3 + 0) / 3, "aacc": 100 * 3 / 5, "macc": 100 * (2 / 3 + 1 / 2) / 2}
    )
    pixels, ious, accs = zip(*matrix.per_class(), strict=True)
    np.testing.assert_allclose(ious, [200 / 3, 100 / 3, 0, math.nan])
    np.testing.assert_allclose(accs, [200 / 3, 50, math.nan, math.nan])
    assert pixels == (3, 2, 0, 0)


def test_unlabelled_pixels_count_nowhere_whatever_was_predicted_there() -> None:
    matrix = ConfusionMatrix(3)
    matrix.add(torch.tensor([[0, 1, 2, 200]]), torch.full((1, 4), IGNORE))
    assert matrix.counts.sum() == 0
    assert matrix.metrics() == {"miou": 0, "aacc": 0, "macc": 0}


@pytest.mark.parametrize(
    ("prediction", "target", "line"),
    [
        (torch.tensor([0, 3]), torch.tensor([0, 1]), "the prediction 3 is none of the 3 classes"),
        (torch.tensor([0, 1]), torch.tensor([0, 7]), "the label 7 is none of the 3 classes"),
        (torch.tensor([0, 1]), torch.tensor([-1, 0]), "the label -1 is none"),
        (torch.tensor([0, 1]), torch.tensor([0]), r"predictions are \(2,\) where labels are \(1,\)"),
    ],
)
def test_what_is_no_class_is_refused_and_not_counted_as_another(
    prediction: torch.Tensor, target: torch.Tensor, line: str
) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(UserError, match=line):
        matrix.add(prediction, target)
    assert matrix.counts.sum() == 0
