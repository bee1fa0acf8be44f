"""Writing down which experts were chosen, for as long as somebody wants to know."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.moe.compute import is_recomputing
from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import moe_layers


class RoutingRecord:
    """The choices of every MoE layer over all forwards inside `record_routing`, in order."""

    def __init__(self) -> None:
        self._expert_ids: dict[int, list[Tensor]] = defaultdict(list)
        self._gates: dict[int, list[Tensor]] = defaultdict(list)

    def add(self, layer: int, expert_ids: Tensor, gates: Tensor) -> None:
        """Append what one forward decided."""
        self._expert_ids[layer].append(expert_ids.detach().cpu())
        self._gates[layer].append(gates.detach().cpu())

    @property
    def expert_ids(self) -> dict[int, Tensor]:
        """By block number: `[S, k]` int64 on the CPU, S images or tokens in the order they were seen."""
        return {layer: torch.cat(parts) for layer, parts in self._expert_ids.items()}

    @property
    def gates(self) -> dict[int, Tensor]:
        """By block number: `[S, k]` weights of the chosen experts, fp32 on the CPU."""
        return {layer: torch.cat(parts) for layer, parts in self._gates.items()}


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RoutingRecord]:
    """Record the routing of every forward inside the `with` block.

    Costs nothing outside it, nests, and leaves nothing behind, also after an exception.
    What activation checkpointing computes again is not recorded again.

    Raises UserError if the model has no MoE layer.

    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    >>> with vimoe.record_routing(vimoe.upcycle(model, last=2, num_experts=4)) as record:
    ...     logits = model(torch.randn(8, 3, 32, 32))
    >>> record.expert_ids[11].shape
    torch.Size([8, 1])
    """
    layers = moe_layers(model)
    if not layers:
        raise UserError("this model has no MoE layer whose routing could be recorded: call vimoe.upcycle first")
    if not all(layer.router.top_k for layer in layers.values()):
        raise UserError("router 'soft' mixes all tokens for all experts: there are no choices to record")
    record = RoutingRecord()
    handles = []
    for number, layer in layers.items():

        def note(module: nn.Module, _inputs: object, _output: object, number: int = number) -> None:
            assert isinstance(module, MoELayer)
            if module.last_selection is not None and not is_recomputing():
                record.add(number, module.last_selection.expert_ids, module.last_selection.gates)

        handles.append(layer.register_forward_hook(note))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
