"""How the routers are doing while they train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vimoe.distributed import all_reduce_sum
from vimoe.moe.losses import assignments, expert_load, load_balance_loss
from vimoe.vit.blocks import moe_layers


class EpochLoad:
    """The load of every expert, gathered over the batches of an epoch."""

    def __init__(self) -> None:
        self._counts: dict[int, Tensor] = {}

    def add(self, model: nn.Module) -> None:
        """Count what the last forward decided."""
        for number, layer in moe_layers(model).items():
            if layer.last_selection is not None:
                counts = assignments(layer.last_selection.expert_ids, layer.experts.num_experts)
                self._counts[number] = self._counts.get(number, 0) + counts.double()

    def of(self, number: int) -> Tensor | None:
        """`[E]` load of a block's experts over all processes, None before the first batch; all call this together."""
        if number not in self._counts:
            return None
        counts = self._counts[number].clone()
        all_reduce_sum(counts)
        return (counts / counts.sum()).float()


def routing_health(model: nn.Module, epoch_load: EpochLoad | None = None) -> dict[str, dict[str, Any]]:
    """Metrics for each MoE layer, by block number: of the load of an epoch, the rest of the last forward.

    `load` of each expert; `max_load` its largest; `effective_experts` exp(H(load)), between 1 and E;
    `balance_loss`, 1 at perfect balance; `entropy` of the router in nats, mean over selections;
    `top_gate` the mean probability of the first choice.

    Args:
        model: The model, after a forward.
        epoch_load: The load of the epoch; that of the last forward without it.
    """
    metrics: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        for number, layer in moe_layers(model).items():
            selection = layer.last_selection
            if selection is None:
                continue
            probs = selection.probs
            load = epoch_load.of(number) if epoch_load is not None else None
            if load is None:
                load = expert_load(selection.expert_ids, probs.shape[-1])
            metrics[str(number)] = {
                "load": [round(share, 4) for share in load.tolist()],
                "max_load": load.max().item(),
                "effective_experts": torch.special.entr(load).sum().exp().item(),
                "balance_loss": load_balance_loss(probs, selection.expert_ids).item(),
                "entropy": torch.special.entr(probs).sum(-1).mean().item(),
                "top_gate": probs.max(-1).values.mean().item(),
            }
    return metrics
