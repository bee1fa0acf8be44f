"""Images that reach every expert of every MoE layer, so that no expert of an exported graph goes untested."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import moe_layers

NOISE_IMAGES = 64
# Images that are computed or changed at a time.
BATCH = 16
# Change of a pixel in the first step towards an expert; images have a deviation of about 1.
STEP = 0.1
# Steps after which an ascent is given up if at its pace it would not arrive.
PATIENCE = 10


class Reach(NamedTuple):
    """How near B images are to each of a layer's E experts; under token routing, their nearest tokens.

    Attributes:
        margins: `[B, E]` how far the expert's logit is above the last one that is left out, or below the last one that
            is chosen.
        chosen: `[B, E]` whether the expert is chosen; a bias may decide otherwise than the logits.
    """

    margins: Tensor
    chosen: Tensor


def probe_images(model: nn.Module, image_shape: tuple[int, int, int], steps: int = 60, starts: int = 3) -> Tensor:
    """Noise, and for each expert that no noise reaches an image made to reach it: `[B, C, H, W]`.

    Noise images differ in strength and coarseness. For what is left, up to `starts` of them, the nearest first, are
    changed by gradient ascent on the expert's margin, for at most `steps` steps. Where that fails, as after a collapse,
    there is no image for the expert. The model is in eval mode.
    """
    noise = images = noise_images(image_shape, NOISE_IMAGES)
    near = _reach(model, noise)
    reached = {block: found.chosen.any(0) for block, found in near.items()}
    for block, layer in moe_layers(model).items():
        for start in range(starts):
            missing = (~reached[block]).nonzero()[:, 0]
            if not len(missing):
                break
            places = near[block].margins[:, missing].topk(starts, 0).indices[start]
            for experts, first in zip(missing.split(BATCH), noise[places].split(BATCH), strict=True):
                made = _ascend(model, layer, experts, first, steps)
                if len(made):
                    images = torch.cat([images, made])
                    reached = {n: reached[n] | found.chosen.any(0) for n, found in _reach(model, made).items()}
    return images


def noise_images(image_shape: tuple[int, int, int], number: int) -> Tensor:
    """`[number, C, H, W]`, the same ones at every call: from one colour to fine noise, weak and strong."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = image_shape
    images = []
    for i in range(number):
        cells = 2 ** (i % 5)
        small = torch.randn(1, channels, min(cells, height), min(cells, width), generator=generator)
        coarse = nn.functional.interpolate(small, size=(height, width), mode="nearest")
        images.append((0.5 + i % 3) * coarse + 0.1 * torch.randn(1, *image_shape, generator=generator))
    return torch.cat(images)


@torch.no_grad()
def _reach(model: nn.Module, images: Tensor) -> dict[int, Reach]:
    parts: dict[int, list[Reach]] = {block: [] for block in moe_layers(model)}
    for batch in images.split(BATCH):
        model(batch)
        for block, layer in moe_layers(model).items():
            parts[block].append(_last_reach(layer, len(batch)))
    return {block: Reach(*map(torch.cat, zip(*found, strict=True))) for block, found in parts.items()}


def _last_reach(layer: MoELayer, images: int) -> Reach:
    """Of the images of the last forward."""
    assert layer.last_selection is not None
    ids, logits = layer.last_selection.expert_ids, layer.last_selection.logits
    ranked = nn.functional.pad(logits, (0, 1), value=-torch.inf).topk(ids.shape[1] + 1).values  # all may be chosen
    last_in, first_out = ranked[:, -2:, None].unbind(1)
    margins = logits - torch.where(logits >= last_in, first_out, last_in)
    chosen = nn.functional.one_hot(ids, logits.shape[1]).any(1)
    return Reach(margins.unflatten(0, (images, -1)).amax(1), chosen.unflatten(0, (images, -1)).any(1))


def _ascend(model: nn.Module, layer: MoELayer, experts: Tensor, images: Tensor, steps: int) -> Tensor:
    """Those of M images `[M, C, H, W]` that can be changed so that each reaches its expert, `[M]`.

    An image is done when its expert is as far above the others as it was below them. Steps follow the signs of the
    gradient, which may be of any scale.
    """
    best, highest = images.clone(), torch.full((len(images),), -torch.inf)
    margins = torch.empty(steps, len(images))
    going = torch.arange(len(images))
    for step in range(steps):
        part = images[going].requires_grad_()
        model(part)
        reach = _last_reach(layer, len(part))
        margin, chosen = (found.gather(1, experts[going, None])[:, 0] for found in reach)
        (gradient,) = torch.autograd.grad(margin.sum(), part)
        margins[step, going] = margin = margin.detach()
        better = chosen & (margin > highest[going])
        best[going[better]], highest[going[better]] = part.detach()[better], margin[better]
        stop = highest[going] >= -margins[0, going]
        if step >= PATIENCE:
            pace = (margin - margins[step - PATIENCE, going]) / PATIENCE
            stop |= margin + pace * (steps - step) < 0
        images[going] = part.detach() + STEP * (1 - step / steps) * gradient.sign()
        going = going[~stop]
        if not len(going):
            break
    return best[highest > -torch.inf]
