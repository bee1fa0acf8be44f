"""How the routers are doing while they train."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vimoe.distributed import all_reduce_sum
from vimoe.moe.losses import assignments
from vimoe.vit.blocks import moe_layers


class RoutingHealth:
    """What the routers did, summed over the forwards of an epoch."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = moe_layers(model)
        # For a layer of E experts `[2 E + 3]`: assignments and sum of probabilities by expert, sum of entropies and of
        # the largest probabilities, and how many selections no expert served.
        self._sums: dict[int, Tensor] = {}

    @torch.no_grad()
    def add(self) -> None:
        """Add what the last forward decided; no GPU is waited for."""
        for number, layer in self._layers.items():
            if (selection := layer.last_selection) is None:
                continue
            probs = selection.probs
            counts = assignments(selection.expert_ids, probs.shape[-1])
            unserved = (selection.expert_ids == probs.shape[-1]).all(-1).sum()
            decided = torch.stack([torch.special.entr(probs).sum(), probs.amax(-1).sum(), unserved])
            sums = torch.cat([counts, probs.sum(0), decided]).double()
            self._sums[number] = self._sums[number] + sums if number in self._sums else sums

    def totals(self) -> dict[int, Tensor]:
        """The sums over all processes, by block number; all processes call this together."""
        totals = {number: sums.clone() for number, sums in self._sums.items()}
        all_reduce_sum(*totals.values())
        return totals

    def restore(self, totals: Mapping[int, Tensor], first: bool) -> None:
        """Go on from what `totals` gave; the `first` process brings it in."""
        self._sums = {}
        for number, sums in totals.items():
            layer = self._layers[number]
            if len(sums) != 2 * layer.experts.num_experts + 3:
                raise ValueError(f"block {number} has another number of experts")
            self._sums[number] = sums.to(layer.router.weight.device) * first

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Metrics for each MoE layer by block number, over all processes; all of them call this together.

        `load` of each expert; `max_load` its largest; `effective_experts` exp(H(load)), between 1 and E;
        `balance_loss` E · Σ load · mean probability, 1 at perfect balance; `entropy` of the router in nats, mean over
        selections; `top_gate` the mean probability of the first choice; `unserved`, where experts have a capacity, the
        share of selections that none served.
        """
        metrics: dict[str, dict[str, Any]] = {}
        for number, sums in self.totals().items():
            experts = (len(sums) - 3) // 2
            counts, probs = sums[:experts], sums[experts : 2 * experts]
            entropy, top, unserved = sums[2 * experts :].tolist()
            load, selections = counts / counts.sum(), probs.sum().item()
            metrics[str(number)] = {
                "load": [round(share, 4) for share in load.tolist()],
                "max_load": load.max().item(),
                "effective_experts": torch.special.entr(load).sum().exp().item(),
                "balance_loss": experts * (load * probs).sum().item() / selections,
                "entropy": entropy / selections,
                "top_gate": top / selections,
            }
            if not self._layers[number].router.dropless:
                metrics[str(number)]["unserved"] = unserved / selections
        return metrics
