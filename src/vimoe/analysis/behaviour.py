"""How a model routes held-out images, taken down batch by batch in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimoe.analysis.expert_similarity import output_gram
from vimoe.analysis.observations import ImageObservations, Observations, PatchObservations
from vimoe.analysis.specialisation import entropy_bits, mutual_information
from vimoe.data.epoch_order import generator
from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import moe_layers

EXAMPLES = 8  # images that are named for each expert, at either end
SAMPLED_ROWS = 1024  # inputs on which the experts' answers are compared


@dataclass
class LayerBehaviour:
    """What one layer did over all images so far. P is 1 for a choice an image, the patches for a choice a token.

    Attributes:
        num_experts: Its experts E.
        used: For each batch, `[images, E]` how many of an image's choices fell on each expert.
        maps: For each batch, `[images, P, k]` the experts, where patches have classes of their own.
        choices: How many first choices there were.
        confidence: Sum of their probabilities.
        margin: Sum of their distances from the second choice.
        stayed: How many of them the varied image made too.
        gates: `[E]` sum of the gates.
        gram: `[E, E]` see `experts.output_gram`.
        sure: Score and place of the images that each expert is most probable for, `[EXAMPLES, E]` each.
        unsure: The same for the least probable ones among the images that chose it.
    """

    num_experts: int
    used: list[NDArray[np.int32]] = field(default_factory=list)
    maps: list[NDArray[np.uint8]] = field(default_factory=list)
    choices: int = 0
    confidence: float = 0.0
    margin: float = 0.0
    stayed: int = 0
    gates: Tensor = field(default_factory=lambda: torch.zeros(0))
    gram: Tensor = field(default_factory=lambda: torch.zeros(0))
    sure: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.zeros(0), torch.zeros(0)))
    unsure: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.zeros(0), torch.zeros(0)))

    def __post_init__(self) -> None:
        size = self.num_experts
        self.gates = torch.zeros(size, dtype=torch.float64)
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        nobody = torch.full((EXAMPLES, size), -torch.inf), torch.full((EXAMPLES, size), -1)
        self.sure, self.unsure = nobody, nobody

    @property
    def mass(self) -> float:
        """Mean sum of the gates of a choice."""
        return float(self.gates.sum()) / max(1, self.choices)

    def examples(self, expert: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Places of the images that this expert was most, and least, probable for; none is in both."""
        sure, unsure = (places[:, expert].tolist() for _, places in (self.sure, self.unsure))
        first = tuple(place for place in sure if place >= 0)
        return first, tuple(place for place in unsure if place >= 0 and place not in first)


class Behaviour:
    """All layers of a model, watched.

    Besides sums whose size does not depend on the number of images it keeps, for each image and layer, how often
    it used each expert (the chance levels need it); and the classes and experts of patches where these have classes.

    Args:
        model: An upcycled model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = moe_layers(model)
        self.layers = {n: LayerBehaviour(layer.experts.num_experts) for n, layer in self.modules.items()}
        numbers = list(self.layers)
        self.joint = {
            (a, b): np.zeros((self.layers[a].num_experts, self.layers[b].num_experts), dtype=np.int64)
            for a, b in pairwise(numbers)
        }
        self.labels: list[NDArray[np.int64]] = []
        self.images = 0

    def watch(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run a batch as it is and once more a little varied, and take down what the routers do.

        Args:
            images: `[B, C, H, W]` on the model's device.
            labels: `[B]` the class of each image, or `[B, P]` of each patch, -1 for none.

        Returns:
            What the model answers to the batch as it is.
        """
        inputs: dict[int, Tensor] = {}
        handles = [
            layer.register_forward_pre_hook(lambda _, given, number=number: inputs.__setitem__(number, given[0]))
            for number, layer in (self.modules.items() if not self.images else ())
        ]
        try:
            outputs = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        for number, x in inputs.items():
            rows = x.flatten(0, 1)
            rows = rows[:: max(1, len(rows) // SAMPLED_ROWS)]
            self.layers[number].gram += output_gram(self.modules[number].experts, rows)
        first = {number: self._take_down(number, len(images), labels) for number in self.layers}
        for a, b in self.joint:
            np.add.at(self.joint[a, b], (first[a].numpy().ravel(), first[b].numpy().ravel()), 1)
        self.model(vary_a_little(images, generator("stability", self.images)))
        for number, layer in self.modules.items():
            again = _by_image(layer, len(images))[0][..., 0]
            self.layers[number].stayed += int((again == first[number]).sum())
        self.labels.append(labels.cpu().numpy())
        self.images += len(images)
        return outputs

    def _take_down(self, number: int, size: int, labels: Tensor) -> Tensor:
        """Note what a layer decided in the last forward; gives the first choices `[B, P]`."""
        kept, experts = self.layers[number], self.layers[number].num_experts
        ids, gates, probs = _by_image(self.modules[number], size)
        places = torch.arange(size)[:, None] * experts + ids.flatten(1)
        used = torch.bincount(places.flatten(), minlength=size * experts).view(size, experts)
        kept.used.append(used.numpy().astype(np.int32))
        if labels.ndim > 1:
            kept.maps.append(ids.numpy().astype(np.uint8))
        first, top = ids[..., 0], probs.topk(min(2, experts), dim=-1).values
        kept.choices += first.numel()
        kept.confidence += float(top[..., 0].double().sum())
        kept.margin += float((2 * top[..., 0] - top.sum(-1)).double().sum()) if experts > 1 else first.numel()
        kept.gates.index_add_(0, ids.flatten(), gates.flatten().double())
        score, numbers = probs.mean(1), torch.arange(self.images, self.images + size)[:, None].expand(size, experts)
        chosen = torch.zeros(size, experts, dtype=torch.bool).scatter_(1, first, True)
        kept.sure = _top(kept.sure, score.masked_fill(~chosen, -torch.inf), numbers)
        kept.unsure = _top(kept.unsure, (-score).masked_fill(~chosen, -torch.inf), numbers)
        return first

    def observations(self, number: int, num_classes: int) -> Observations:
        """The choices of a layer image by image."""
        kept = self.layers[number]
        if self.labels[0].ndim == 1:
            return ImageObservations(np.concatenate(self.labels), kept.used, num_classes)
        return PatchObservations(self.labels, kept.maps, num_classes, kept.num_experts)


def agreement(joint: NDArray[np.int64]) -> float:
    """How much of one layer's first choice is known from the other's, 0 to 1.

    Mutual information less its bias for independent samples (Miller 1955), over the smaller of the two entropies;
    0 where a layer makes no choice.

    Args:
        joint: `[E of one, E of the other]` counts.
    """
    rows, columns = joint.sum(1), joint.sum(0)
    most = min(entropy_bits(rows), entropy_bits(columns))
    if most <= 0:
        return 0.0
    bias = (np.count_nonzero(rows) - 1) * (np.count_nonzero(columns) - 1) / (2 * joint.sum() * np.log(2))
    return float(np.clip((mutual_information(joint) - bias) / most, 0, 1))


def vary_a_little(images: Tensor, drawn: torch.Generator) -> Tensor:
    """The same images moved by a fiftieth of their size, at least a pixel, and with contrast changed by up to 10 %.

    What moves in at the border is what stood there.

    Args:
        images: `[B, C, H, W]`.
        drawn: Where direction and contrast of each image are drawn from.
    """
    size, height, width = len(images), *images.shape[-2:]
    signs = torch.randint(0, 2, (2, size, 1), generator=drawn) * 2 - 1
    rows = (torch.arange(height) + signs[0] * max(1, height // 50)).clamp(0, height - 1).to(images.device)
    columns = (torch.arange(width) + signs[1] * max(1, width // 50)).clamp(0, width - 1).to(images.device)
    numbers = torch.arange(size, device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
    moved = images[numbers, channels, rows[:, None, :, None], columns[:, None, None, :]]
    contrast = 0.9 + 0.2 * torch.rand(size, 1, 1, 1, generator=drawn).to(images)
    centre = moved.mean((-3, -2, -1), keepdim=True)
    return centre + contrast * (moved - centre)


def _by_image(layer: MoELayer, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Experts `[B, P, k]`, gates `[B, P, k]` and probabilities `[B, P, E]` of the last forward, on the CPU.

    Prefix tokens, which are no patch of the image, are left out.
    """
    selection = layer.last_selection
    assert selection is not None
    prefix = layer.num_prefix_tokens if layer.routing == "token" else 0
    parts = (selection.expert_ids, selection.gates, selection.probs)
    ids, gates, probs = (part.unflatten(0, (size, -1))[:, prefix:].cpu() for part in parts)
    return ids, gates, probs


def _top(before: tuple[Tensor, Tensor], score: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The largest scores of each column and where they stand, old and new together."""
    scores, all_places = torch.cat([before[0], score]), torch.cat([before[1], places])
    best = scores.topk(EXAMPLES, dim=0)
    return best.values, all_places.gather(0, best.indices).masked_fill(best.values == -torch.inf, -1)
