from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tasks.scenery import NAMES, small_segmenter
from vimoe import UserError
from vimoe.data.decode import BrokenImageError
from vimoe.data.images import Images
from vimoe.data.loaders import batches
from vimoe.data.masks import IGNORE
from vimoe.data.splits import Splits
from vimoe.data.transforms import ImageForm
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.segmenter_folder import load_segmenter, read_segmentation
from vimoe.tasks.task import Task
from vimoe.tasks.windows import View


class Sizes(Images):
    """Images as files give them: each of its own size. The first channel, rounded, is the class."""

    from_files = True

    def __init__(self, sizes: list[tuple[int, int]], right: float = 1.0) -> None:
        self.items = []
        for size in sizes:
            mask = torch.randint(0, 3, size)
            shown = torch.where(torch.rand(size) < right, mask, (mask + 1) % 3)
            self.items.append((shown.expand(3, *size).float(), mask))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.items[index]


class Reader(nn.Module):
    """Says of each pixel the class that it shows."""

    def forward(self, images: Tensor) -> Tensor:
        return -(images[:, :1] - torch.arange(3.0)[:, None, None]).square()


def test_the_loss_is_the_mean_over_labelled_pixels_with_smoothing() -> None:
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    masks[0, :2] = IGNORE
    labelled = masks != IGNORE
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[labelled], masks[labelled], label_smoothing=0.1)
    task: Task = Segmentation(3, smoothing=0.1)
    assert torch.allclose(task.loss(logits, masks), expected)


def test_a_batch_without_labels_gives_0_and_a_gradient_of_0() -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = Segmentation(3, smoothing=0.1).loss(logits, torch.full((2, 4, 5), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("view", [View(), View(window=8, stride=5), View(window=6, stride=6, batch=2, flips=True)])
def test_images_of_all_sizes_are_judged_at_their_own_resolution(view: View) -> None:
    images = Sizes([(9, 14), (1, 1), (20, 7)])
    metrics = Segmentation(3, view=view).evaluate(Reader(), images, "cpu")
    assert metrics == {"miou": 100, "aacc": 100, "macc": 100, "images": 3}


def test_errors_count_as_often_as_they_occur() -> None:
    images = Sizes([(30, 40), (10, 10)], right=0.7)
    pairs = [(shown[0] == mask) for shown, mask in images.items]
    metrics = Segmentation(3).evaluate(Reader(), images, "cpu")
    assert metrics["aacc"] == pytest.approx(100 * torch.cat([p.flatten() for p in pairs]).float().mean().item())


def test_unlabelled_pixels_count_nowhere_and_a_image_of_them_alone_is_used() -> None:
    images = Sizes([(8, 8), (8, 8)])
    images.items[0][1][:4] = IGNORE
    images.items[1][1][:] = IGNORE
    images.items[0][0][:, :4] = 7  # wrong wherever nobody asks
    assert Segmentation(3).evaluate(Reader(), images, "cpu")["miou"] == 100


def test_what_makes_processes_come_out_even_counts_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Sizes([(4, 6)] * 5)
    monkeypatch.setattr("vimoe.data.loaders.world_size", lambda: 3)
    pixels = []
    for part in range(3):
        monkeypatch.setattr("vimoe.data.loaders.rank", lambda part=part: part)
        confusion = Segmentation(3).measure(Reader(), batches(shown, 1), "cpu")
        assert confusion.images == (2, 2, 1)[part]
        pixels.append(int(confusion.counts.sum()))
    assert pixels == [48, 48, 24]


def test_a_broken_image_or_mask_is_listed_and_not_counted() -> None:
    class Broken(Sizes):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            if index == 1:
                raise BrokenImageError("1.png is cut")
            return super().__getitem__(index)

    lines: list[str] = []
    metrics = Segmentation(3).evaluate(Reader(), Broken([(8, 8)] * 3), "cpu", 0, lines.append, 0.4)
    assert (metrics["images"], lines) == (2, ["1.png is cut"])
    with pytest.raises(UserError, match=r"1 of the 3 images to evaluate on are broken, .* 0.3 allows: 1.png is cut"):
        Segmentation(3).evaluate(Reader(), Broken([(8, 8)] * 3), "cpu", max_broken=0.3)


def test_evaluation_gives_the_mode_back() -> None:
    model = small_segmenter().train()
    metrics = Segmentation(3, view=View(short_side=16)).evaluate(model, Sizes([(20, 33)]), "cpu")
    assert model.training
    assert 0 <= metrics["miou"] <= 100


def test_a_finished_model_is_kept_with_what_its_masks_mean(tmp_path: Path) -> None:
    splits = Splits(Sizes([]), Sizes([]), Sizes([]), NAMES, ImageForm((3, 32, 32), (0.5,) * 3, (0.5,) * 3))
    model = small_segmenter()
    Segmentation(3, view=View(short_side=24), reduce_zero_label=True).save(model, tmp_path, splits)
    entry = read_segmentation(tmp_path)
    assert (entry.class_names, entry.short_side, entry.reduce_zero_label) == (NAMES, 24, True)
    images = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(load_segmenter(tmp_path)(images), model(images))


def test_no_class_can_have_the_number_of_unlabelled_pixels() -> None:
    Segmentation(255)
    with pytest.raises(UserError, match="256 classes; masks can tell at most 255 apart"):
        Segmentation(256)
