"""Routers that start from what they see: each expert begins as the home of one cluster of inputs.

A fresh router (normal, σ = 0.02) sends neighbouring inputs anywhere, and every step of training moves the borders, so
that experts see changing inputs and stay alike. Centroids give each expert a region of its own from the first step.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.vit.blocks import moe_layers

# Rows that the clusters are found in, and the logit of an input of the usual length that lies on its centroid.
MOST_ROWS, LOGIT = 16_384, 10.0


def start_routers_at_centroids(model: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    """Set the rows of each router of a freshly upcycled model to the centroids of its inputs, in place.

    They come from spherical k-means on some hundred training images `[B, C, H, W]` on the model's device; a CPU
    generator decides where the clusters begin. The model is left in the mode it came in.
    """
    layers = {
        number: layer
        for number, layer in moe_layers(model).items()
        if layer.router.top_k and layer.router.decides and layer.router.weight.any()  # at 0 all are chosen, and alike
    }
    seen: dict[int, list[Tensor]] = {number: [] for number in layers}
    handles = [
        layer.router.register_forward_pre_hook(lambda _, inputs, number=number: seen[number].append(inputs[0]))
        for number, layer in layers.items()
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            for batch in images.split(128):
                model.eval()(batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    for number, layer in layers.items():
        rows = torch.cat(seen[number]).flatten(0, 1).float().cpu()
        rows = rows[torch.randperm(len(rows), generator=generator)[:MOST_ROWS]]
        weight, m = layer.router.weight, layer.experts.granularity
        # The slices of a copy have the same row, those of a cut FFN have not.
        tied = m if weight.equal(weight[torch.arange(len(weight)) // m * m]) else 1
        centroids = spherical_kmeans(rows, -(-len(weight) // tied), generator).repeat_interleave(tied, 0)
        with torch.no_grad():
            weight.copy_(centroids[: len(weight)] * (LOGIT / rows.norm(dim=1).mean().clamp(min=1e-6)))
        layer.last_selection = None


def spherical_kmeans(rows: Tensor, clusters: int, generator: torch.Generator, steps: int = 25) -> Tensor:
    """Directions `[K, D]` of length 1 that rows `[N, D]` gather around (Dhillon and Modha 2001), begun as k-means++.

    A cluster that lost all its rows keeps its direction.
    """
    rows = F.normalize(rows, dim=1)
    first = torch.randint(len(rows), (1,), generator=generator)
    centroids = rows[first]
    while len(centroids) < clusters:
        far = (1 - (rows @ centroids.T).amax(1)).clamp(min=0) + 1e-9
        centroids = torch.cat([centroids, rows[torch.multinomial(far, 1, generator=generator)]])
    for _ in range(steps):
        nearest = F.one_hot((rows @ centroids.T).argmax(1), clusters).to(rows)
        sums = nearest.T @ rows
        centroids = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centroids)
    return centroids
