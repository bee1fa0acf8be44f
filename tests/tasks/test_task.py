import pytest
import torch
from torch import nn

from vimoe.data.images import InMemory
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError
from vimoe.tasks.classification import Classification

FORM = ImageForm((1, 1, 2), (0.5,), (0.5,))


class Flat(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def images(broken: int) -> InMemory:
    pixels = torch.zeros(10, 1, 1, 2, dtype=torch.uint8)
    return InMemory(pixels, torch.zeros(10, dtype=torch.int64), FORM, {i: f"{i}.jpg is cut" for i in range(broken)})


def test_broken_images_of_an_evaluation_are_listed_and_not_counted() -> None:
    lines: list[str] = []
    found = Classification(2).evaluate(Flat(), images(3), "cpu", on_broken=lines.append, max_broken=0.3)
    assert found["images"] == 7
    assert lines == ["0.jpg is cut", "1.jpg is cut", "2.jpg is cut"]


def test_more_broken_images_than_allowed_stop_an_evaluation() -> None:
    with pytest.raises(UserError, match=r"4 of the 10 images .* more than max_broken 0.3 allows: 0.jpg is cut"):
        Classification(2).evaluate(Flat(), images(4), "cpu", max_broken=0.3)


def test_an_evaluation_on_nothing_but_broken_images_never_gives_metrics() -> None:
    with pytest.raises(UserError, match="10 of the 10 images to evaluate on are broken"):
        Classification(2).evaluate(Flat(), images(10), "cpu")
