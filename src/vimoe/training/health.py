"""How the routers are doing while they train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vimoe.moe.losses import expert_load, load_balance_loss
from vimoe.vit.blocks import moe_layers


def routing_health(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Figures of the last forward for each MoE layer, by block number.

    `load` of each expert; `max_load` its largest; `effective_experts` exp(H(load)), between 1 and E;
    `balance_loss`, 1 at perfect balance; `entropy` of the router in nats, mean over selections;
    `top_gate` the mean probability of the first choice.
    """
    figures: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        for number, layer in moe_layers(model).items():
            selection = layer.last_selection
            if selection is None:
                continue
            probs = selection.probs
            load = expert_load(selection.expert_ids, probs.shape[-1])
            figures[str(number)] = {
                "load": [round(share, 4) for share in load.tolist()],
                "max_load": load.max().item(),
                "effective_experts": torch.special.entr(load).sum().exp().item(),
                "balance_loss": load_balance_loss(probs, selection.expert_ids).item(),
                "entropy": torch.special.entr(probs).sum(-1).mean().item(),
                "top_gate": probs.max(-1).values.mean().item(),
            }
    return figures
