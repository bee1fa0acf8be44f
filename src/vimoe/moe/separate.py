"""Routed experts as modules of their own, for tools that go by module type: PEFT's `target_modules`, quantisation."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.moe.compute import Backend, rows_by_expert
from vimoe.moe.dispatch import combine
from vimoe.moe.experts import Experts, Stacked
from vimoe.moe.layer import moe_modules

# S selections, k experts chosen for each, n rows a selection, D width.


class SeparateExperts(nn.ModuleList):
    """E plain FFNs, `experts.0.fc1` to `experts.7.fc2`, computed one after the other.

    `backend` is that of the stacked experts that they were.
    """

    def __init__(self, ffns: Iterable[nn.Module] = (), backend: Backend = "auto") -> None:
        super().__init__(ffns)
        self.backend: Backend = backend

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self)

    def forward(self, x: Tensor, expert_ids: Tensor, gates: Tensor, dropless: bool = True) -> Tensor:
        """What `Experts` compute: `[S, n, D]` for S selections of n rows; ids (int64) and gates are `[S, k]`."""
        rows, counts, order = rows_by_expert(x, expert_ids, len(self), dropless)
        parts = zip(self, rows.split(counts), strict=True)
        y = torch.cat([ffn(part) for ffn, part in parts if len(part)] or [rows])
        return combine(y.view(-1, x.shape[1], y.shape[-1]), order, gates)


def separate(model: nn.Module) -> nn.Module:
    """Make plain FFNs of `nn.Linear`s of the experts of every MoE layer, in place; the outputs do not change.

    It trains, and takes `balance_loss` and `record_routing`. It is eager alone, and slower than stacked experts where
    there are many; `stack` turns it back, for `vimoe.save` and all else.

    Returns:
        The model.

    Raises UserError if there is no MoE layer, or its experts are slices of an FFN or differences of low rank.
    """
    if not (layers := moe_modules(model)):
        raise UserError("the model has no MoE layer")
    found = [layer.experts for layer in layers.values()]
    if not all(isinstance(e, Experts) and isinstance(e.fc2, Stacked) and e.granularity == 1 for e in found):
        raise UserError("only whole stacked experts can be separated: not slices, low-rank ones, or separate ones")
    for layer, experts in zip(layers.values(), found, strict=True):
        one_hot = torch.eye(experts.num_experts, dtype=torch.float64)
        ffns = [experts.to_ffn(weights) for weights in one_hot]
        for ffn in ffns if "drop1" in experts._modules else []:
            ffn.drop1 = copy.deepcopy(experts.drop1)
        layer.experts = SeparateExperts(ffns, experts.backend).train(layer.training)  # type: ignore[assignment]
    return model


@torch.no_grad()
def stack(model: nn.Module) -> nn.Module:
    """Stack what `separate` took apart, in place.

    Returns:
        The model.

    Raises UserError if an expert is no longer an FFN of `nn.Linear`s: merge adapters first; what is quantised stays so.
    """
    for layer in moe_modules(model).values():
        if isinstance(layer.experts, SeparateExperts):
            ffns = list(layer.experts)
            experts = Experts(ffns[0], len(ffns), backend=layer.experts.backend)
            for name, value in experts.named_parameters():
                value.copy_(torch.stack([ffn.get_parameter(name) for ffn in ffns]))
            layer.experts = experts.train(layer.training)
    return model
