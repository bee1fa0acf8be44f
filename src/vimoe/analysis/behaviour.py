"""How a model routes held-out images, noted batch by batch in one pass: the one place where choices are counted."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.expert_similarity import output_gram
from vimoe.analysis.held_out import HeldOut
from vimoe.analysis.observations import ImageObservations, LabelSetObservations, Observations, PatchObservations
from vimoe.analysis.specialisation import entropy_bits, mutual_information
from vimoe.data.epoch_order import generator
from vimoe.errors import UserError
from vimoe.moe.layer import MoELayer
from vimoe.tasks.classification import evaluating
from vimoe.vit.blocks import moe_layers

EXAMPLES = 8  # images that are named for each expert, at either end
TOKENS = 4  # of each image, on which the experts' answers are compared


@dataclass
class LayerBehaviour:
    """What one layer did over all images so far. P is 1 for a choice an image, the patches for a choice a token."""

    num_experts: int  # its experts E
    # For each batch, `[images, E]` how many of an image's choices fell on each expert.
    used: list[NDArray[np.int32]] = field(default_factory=list)
    # For each batch, `[images, E]` the mean probability of each expert, NaN for one that is nobody's first.
    favour: list[NDArray[np.float32]] = field(default_factory=list)
    # For each batch, `[images, P, k]` the experts (E for none), where patches have classes of their own.
    maps: list[NDArray[np.unsignedinteger]] = field(default_factory=list)
    choices: int = 0  # how many first choices there were
    confidence: float = 0.0  # sum of their probabilities
    margin: float = 0.0  # sum of their distances from the second choice
    gates: float = 0.0  # sum of the gates
    stayed: int = 0  # how many first choices the varied image made too
    gram: Tensor = field(default_factory=lambda: torch.zeros(()))  # `[E, E]` see `output_gram`

    @property
    def mass(self) -> float:
        """Mean sum of the gates of a choice."""
        return self.gates / max(1, self.choices)

    def examples(self, expert: int) -> tuple[list[int], list[int]]:
        """Places of the images that this expert was most, and least, probable for; none is in both."""
        favour = np.concatenate([part[:, expert] for part in self.favour])
        order = np.argsort(-favour, kind="stable")[: np.count_nonzero(~np.isnan(favour))].tolist()
        return order[:EXAMPLES], order[EXAMPLES:][::-1][:EXAMPLES]


class Behaviour:
    """All layers of a model, watched.

    Besides sums whose size does not depend on the number of images it keeps, for each image and layer, how often
    it used each expert (the chance levels need it); and the classes and experts of patches where these have classes.

    Raises UserError if it has no MoE layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modules = model, moe_layers(model)
        if not self.modules:
            raise UserError("this model has no MoE layer whose routing could be counted: call vimoe.upcycle first")
        self.layers = {n: LayerBehaviour(layer.experts.num_experts) for n, layer in self.modules.items()}
        sizes = {n: kept.num_experts for n, kept in self.layers.items()}
        self.joint = {(a, b): np.zeros((sizes[a] + 1, sizes[b] + 1), dtype=np.int64) for a, b in pairwise(sizes)}
        self.labels: list[NDArray[np.int64]] = []
        self.images = 0

    def note(self, labels: Tensor) -> dict[int, Tensor]:
        """Note what the routers chose in the model's last forward, and return the first choices `[B, P]` by block.

        `labels` are `[B]` the class of each image, or `[B, P]` of each patch, -1 for none; or bool `[B, classes]`,
        those that an image has.
        """
        first = {number: self._note_layer(number, labels) for number in self.layers}
        for a, b in self.joint:
            np.add.at(self.joint[a, b], (first[a].numpy().ravel(), first[b].numpy().ravel()), 1)
        self.labels.append(labels.cpu().numpy())
        self.images += len(labels)
        return first

    def watch(self, images: Tensor, labels: Tensor) -> Tensor:
        """Run a batch `[B, C, H, W]` as it is and once more a little varied, and note what routers and experts do.

        The experts' answers are compared on `TOKENS` tokens of every image, drawn at random with a fixed seed for each
        batch: batches of another size draw others.
        `labels` are those of `note`. Returns what the model answers to the batch as it is.
        """
        inputs: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for number, layer in self.modules.items():
                keep = partial(lambda number, _, given: inputs.__setitem__(number, given[0]), number)
                hooks.enter_context(layer.register_forward_pre_hook(keep))
            outputs: Tensor = self.model(images)
        drawn = generator("watch", self.images)
        for number, x in inputs.items():
            tokens = torch.rand(x.shape[:2], generator=drawn).argsort(1)[:, :TOKENS, None].to(x.device)
            rows = x.take_along_dim(tokens, dim=1).flatten(0, 1)
            self.layers[number].gram = self.layers[number].gram + output_gram(self.modules[number].experts, rows)
        first = self.note(labels)
        self.model(vary_a_little(images, drawn))
        for number, layer in self.modules.items():
            again = _by_image(layer, len(images))[0][..., 0]
            self.layers[number].stayed += int((again == first[number]).sum())
        return outputs

    def _note_layer(self, number: int, labels: Tensor) -> Tensor:
        kept, size = self.layers[number], (len(labels), self.layers[number].num_experts)
        ids, gates, probs = _by_image(self.modules[number], len(labels))
        first, top = ids[..., 0], probs.topk(min(2, size[1]), dim=-1).values
        nobody = size[1]  # stands for a choice that no expert serves
        kept.used.append(nn.functional.one_hot(ids.flatten(1), nobody + 1).sum(1)[:, :nobody].numpy().astype(np.int32))
        others = torch.ones(size[0], nobody + 1, dtype=torch.bool).scatter_(1, first, False)[:, :nobody]
        kept.favour.append(probs.mean(1).masked_fill(others, torch.nan).numpy())
        if labels.ndim > 1 and labels.dtype != torch.bool:
            kept.maps.append(ids.numpy().astype(np.uint8 if nobody < 256 else np.uint16))
        kept.choices += first.numel()
        kept.confidence += float(top[..., 0].double().sum())
        kept.margin += float((2 * top[..., 0] - top.sum(-1)).double().sum()) if size[1] > 1 else first.numel()
        kept.gates += float(gates.double().sum())
        return first

    @property
    def by_patch(self) -> bool:
        """Whether patches have classes of their own."""
        return self.labels[0].ndim > 1 and self.labels[0].dtype != bool

    def observations(self, number: int, num_classes: int) -> Observations:
        """The choices of a layer image by image."""
        kept = self.layers[number]
        if self.by_patch:
            return PatchObservations(self.labels, kept.maps, num_classes, kept.num_experts)
        labels = np.concatenate(self.labels)
        one_label = ImageObservations if labels.ndim == 1 else LabelSetObservations
        return one_label(labels, kept.used, num_classes)

    def counts(self, class_names: tuple[str, ...]) -> RoutingCounts:
        """Counts `[layer, class, expert]`."""
        tables = {number: self.observations(number, len(class_names)).table() for number in self.layers}
        return RoutingCounts.of(tables, class_names)

    def experts_touched(self) -> dict[int, float]:
        """By block number, how many experts an image's choices fall on, mean over images (the paper's Table 6)."""
        return {n: sum(int((part > 0).sum()) for part in kept.used) / self.images for n, kept in self.layers.items()}


def count_routing(model: nn.Module, seen: HeldOut, device: str = "cpu", through: nn.Module | None = None) -> Behaviour:
    """Send labelled images through the model, once and as they are, and note every choice.

    `through` is the part of the model that takes them, by default all of it; see `tail`.

    Under `token` routing every patch counts, for its image's class or its own; prefix tokens are left out.

    Raises UserError if the model has no MoE layer.
    """
    behaviour, part = Behaviour(model), model if through is None else through
    with evaluating(part):
        for images, targets in seen.batches():
            part(images.to(device))
            behaviour.note(seen.classes(targets))
    return behaviour


def agreement(joint: NDArray[np.int64]) -> float:
    """How much of one layer's first choice is known from the other's, 0 to 1, by counts `[E of one, E of the other]`.

    Mutual information less its bias for independent samples (Miller 1955), over the smaller of the two entropies;
    0 where a layer makes no choice.
    """
    rows, columns = joint.sum(1), joint.sum(0)
    most = min(entropy_bits(rows), entropy_bits(columns))
    if most <= 0:
        return 0.0
    bias = (np.count_nonzero(rows) - 1) * (np.count_nonzero(columns) - 1) / (2 * joint.sum() * np.log(2))
    return float(np.clip((mutual_information(joint) - bias) / most, 0, 1))


def vary_a_little(images: Tensor, drawn: torch.Generator) -> Tensor:
    """Images `[B, C, H, W]` moved by a fiftieth of their size, at least a pixel, and contrast changed by up to 10 %.

    What moves in at the border is what stood there. Direction and contrast of each image are `drawn`.
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
