"""Images that reach every expert of every MoE layer, so that no expert of an exported graph goes untested."""

import torch
from torch import Tensor, nn

from vimoe.vit.blocks import moe_layers
from vimoe.vit.recording import record_routing

NOISE_IMAGES = 64


def probe_images(
    model: nn.Module, image_shape: tuple[int, int, int], steps: int = 60
) -> tuple[Tensor, dict[int, list[int]]]:
    """Noise, and for each expert that no noise reaches an image made to reach it.

    Noise images differ in strength and coarseness. For what is left, an image is changed by gradient ascent on the
    expert's logit against the best other one, for at most `steps` steps. What no image reaches, as after a collapse,
    is given back: `[B, C, H, W]` images, and by block number the experts that none of them reaches. The model is in
    eval mode.
    """
    images = noise_images(image_shape, NOISE_IMAGES)
    missing = _unreached(model, images)
    found = [images]
    for block, experts in missing.items():
        for expert in experts:
            if (image := _ascend(model, images, block, expert, steps)) is not None:
                found.append(image)
    images = torch.cat(found)
    return images, {block: experts for block, experts in _unreached(model, images).items() if experts}


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


def _unreached(model: nn.Module, images: Tensor) -> dict[int, list[int]]:
    with torch.no_grad(), record_routing(model) as record:
        for batch in images.split(16):
            model(batch)
    experts = {block: layer.experts.num_experts for block, layer in moe_layers(model).items()}
    reached = {block: set(ids.unique().tolist()) for block, ids in record.expert_ids.items()}
    return {block: sorted(set(range(experts[block])) - reached[block]) for block in experts}


def _ascend(model: nn.Module, images: Tensor, block: int, expert: int, steps: int) -> Tensor | None:
    layer = moe_layers(model)[block]

    def margins(images: Tensor) -> Tensor:
        """By selection, how far the expert's logit is above the best other one."""
        model(images)
        assert layer.last_selection is not None
        logits = layer.last_selection.logits
        others = torch.cat([logits[:, :expert], logits[:, expert + 1 :]], 1)
        return logits[:, expert] - others.amax(1) if others.shape[1] else logits[:, expert] * 0 + 1

    with torch.no_grad():
        nearest = margins(images).unflatten(0, (len(images), -1)).amax(1).argmax()
    image = images[nearest][None].clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.1)
    for _ in range(steps):
        margin = margins(image).max()
        if margin.item() > 0.05:
            return image.detach()
        (image.grad,) = torch.autograd.grad(-margin, image)
        optimizer.step()
    return None
