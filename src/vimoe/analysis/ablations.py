"""Ways to ablate one MoE layer: what stands in for its forward."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vimoe.data.epoch_order import generator
from vimoe.moe.config import MoEConfig
from vimoe.moe.layer import MoELayer
from vimoe.moe.router import Selection
from vimoe.vit.blocks import moe_layers
from vimoe.vit.pruning import mean_ffn, plain_ffn

Answer = Callable[[Tensor], Tensor]  # `[B, T, D]` to `[B, T, D]`


def layer_ablations(number: int, layer: MoELayer, config: MoEConfig, load: Tensor, mass: float) -> dict[str, Answer]:
    """The ablations of `analysis_result.ABLATIONS` that this layer allows, in their order.

    Args:
        number: Its block, which decides what the random choices are.
        layer: It is not changed.
        load: `[E]` share of the assignments of each expert.
        mass: Mean sum of the gates of a choice: 1 for straight-through gates.
    """
    found: dict[str, Answer] = {"mean": _mean(layer, load, mass), "random": _rerouted(layer, _at_random(number))}
    if layer.experts.num_experts > layer.router.top_k and layer.router.dropless:
        found["second"] = _rerouted(layer, _next_choice(layer))
    if (shared := layer.shared_expert) is not None:
        # Its share of the output is all there is: scaled up, so that what it lacks is knowledge and not size.
        found["shared"] = lambda x: shared(x) / config.shared_share
    found["pruned"] = plain_ffn(copy.deepcopy(layer), config, load)
    return found


def without_experts(layer: MoELayer, kept: Sequence[int]) -> Answer:
    """The layer as if it had these experts alone, as `vimoe.prune` leaves it."""
    numbers = torch.tensor([*sorted(kept), layer.experts.num_experts])  # the last stands for nobody

    def reduced(_selection: Selection, x: Tensor) -> tuple[Tensor, Tensor]:
        router = copy.deepcopy(layer.router)
        router.keep(sorted(kept))
        chosen = router.forward(x)  # past the hook that calls this
        return numbers.to(x.device)[chosen.expert_ids], chosen.gates

    return _rerouted(layer, reduced)


@contextmanager
def ablated(model: nn.Module, answers: Mapping[int, Answer]) -> Iterator[None]:
    """Let `answers` answer for the MoE layers of these blocks inside the `with` block."""
    layers = moe_layers(model)
    for number, answer in answers.items():
        layers[number].__dict__["forward"] = answer
    try:
        yield
    finally:
        for number in answers:
            del layers[number].__dict__["forward"]


def _mean(layer: MoELayer, load: Tensor, mass: float) -> Answer:
    mean = mean_ffn(layer, load)

    def answer(x: Tensor) -> Tensor:
        y = mass * mean(x)
        return y if layer.shared_expert is None else y + layer.shared_expert(x)

    return answer


def _rerouted(layer: MoELayer, choose: Callable[[Selection, Tensor], tuple[Tensor, Tensor]]) -> Answer:
    """The layer with other choices: the router answers as it does, and `choose`, told its input, overrules it."""

    def answer(x: Tensor) -> Tensor:
        with layer.router.register_forward_hook(overrule):
            return MoELayer.forward(layer, x)

    def overrule(_router: nn.Module, inputs: tuple[Tensor, ...], selection: Selection) -> Selection:
        expert_ids, gates = choose(selection, inputs[0])
        return selection._replace(expert_ids=expert_ids, gates=gates)

    return answer


def _at_random(number: int) -> Callable[[Selection, Tensor], tuple[Tensor, Tensor]]:
    drawn = generator("ablation", number)

    def choose(selection: Selection, _x: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.rand(selection.probs.shape, generator=drawn).argsort(-1)
        ids = order[:, : selection.expert_ids.shape[1]].to(selection.gates.device)
        served = selection.expert_ids < selection.probs.shape[1]
        return torch.where(served, ids, selection.expert_ids), selection.gates

    return choose


def _next_choice(layer: MoELayer) -> Callable[[Selection, Tensor], tuple[Tensor, Tensor]]:
    """Experts 2 to k + 1 in the order of choice, with the gates of 1 to k: who answers changes, not how loud."""

    def choose(selection: Selection, _x: Tensor) -> tuple[Tensor, Tensor]:
        scores = selection.probs if layer.router.bias is None else selection.probs + layer.router.bias
        return scores.topk(layer.router.top_k + 1, dim=-1).indices[:, 1:], selection.gates

    return choose
