"""Which expert each patch chose, and which class it shows: routing seen on the image."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vimoe.data.contact_sheet import to_pixels
from vimoe.data.masks import IGNORE
from vimoe.data.transforms import ImageForm
from vimoe.tasks.classification import evaluating
from vimoe.tasks.segmenter import Segmenter
from vimoe.tasks.windows import resized, view_size
from vimoe.vit.blocks import moe_layers
from vimoe.vit.recording import record_routing

NO_MAJORITY = -1


class ExpertMap(NamedTuple):
    """One image, what is in it, and where its patches went."""

    image: NDArray[np.uint8]  # `[H, W, 3]` uint8
    classes: NDArray[np.int64]  # `[H, W]` int64, the classes of the pixels, `IGNORE` where unlabelled
    # By block number, `[h, w]` int64, the expert of each patch (the strongest of several).
    experts: dict[int, NDArray[np.int64]]
    # Height and width of a patch in pixels; the last row and column may reach beyond the image.
    patch_size: tuple[int, int]


def patch_classes(masks: Tensor, patch_size: tuple[int, int], num_classes: int) -> Tensor:
    """The class of each patch: the one that more than half of its labelled pixels have.

    From `[B, H, W]` int64, `IGNORE` for unlabelled pixels, to `[B, h, w]`, -1 where there is no such class. Sizes are
    rounded up to whole patches.
    """
    (height, width), (rows, columns) = masks.shape[-2:], patch_size
    padded = F.pad(masks, (0, -width % columns, 0, -height % rows), value=IGNORE)
    tiles = padded.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).permute(0, 1, 3, 2, 4)  # B, h, w, rows, columns
    grid, pixels = tiles.shape[:3], tiles.flatten(3).flatten(0, 2)
    labelled = pixels != IGNORE
    cells = torch.arange(len(pixels))[:, None] * num_classes + pixels
    counts = torch.bincount(cells[labelled], minlength=len(pixels) * num_classes).view(-1, num_classes)
    most, classes = counts.max(1)
    return torch.where(2 * most > labelled.sum(1), classes, NO_MAJORITY).view(grid)


def patch_experts(segmenter: Segmenter, images: Tensor) -> dict[int, Tensor]:
    """By block number, the experts that each patch of `[B, C, H, W]` images chose, prefix tokens left out.

    They are `[B, h, w, k]` int64 on the CPU, the strongest choice first.

    Raises UserError if the model has no MoE layer.
    """
    with evaluating(segmenter), record_routing(segmenter) as record:
        segmenter(images)
    layers, grid = moe_layers(segmenter), segmenter.grid(*images.shape[-2:])
    return {
        number: ids.unflatten(0, (len(images), -1))[:, layers[number].num_prefix_tokens :].unflatten(1, grid)
        for number, ids in record.expert_ids.items()
    }


def expert_map(
    segmenter: Segmenter,
    image: Tensor,
    mask: Tensor,
    form: ImageForm,
    device: str = "cpu",
    short_side: int | None = None,
) -> ExpertMap:
    """Look where an image's patches go.

    Args:
        segmenter: Upcycled, on `device`.
        image: `[C, H, W]`, normalised.
        mask: `[H, W]` int64: its labels, or the model's own answer.
        form: How the image was normalised.
        short_side: Pixels that the shorter side is brought to first; None for its own.

    Raises UserError if the model has no MoE layer.
    """
    height, width = image.shape[-2:]
    size = view_size(height, width, short_side)
    sized = resized(image[None], *size)
    return ExpertMap(
        to_pixels(sized[0], form),
        resized_masks(mask[None], *size)[0].numpy(),
        {number: ids[0, ..., 0].numpy() for number, ids in patch_experts(segmenter, sized.to(device)).items()},
        segmenter.patch_size,
    )


def resized_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """`[B, h, w]` int64 at another size, each pixel that of the nearest one."""
    return F.interpolate(masks[:, None].float(), size=(height, width), mode="nearest-exact")[:, 0].long()
