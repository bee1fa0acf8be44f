"""One router for all MoE layers of a model (Mobile V-MoE, Daxberger et al. 2023): the first decides, others follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.moe.compute import is_recomputing
from vimoe.moe.router import Router, Selection, TopKRouter

if TYPE_CHECKING:
    from vimoe.moe.experts import Experts


class LeadingRouter(TopKRouter):
    """A `TopKRouter` that keeps its last decision for the layers that follow it.

    Under activation checkpointing the followers need it again in the backward; what is kept then must be of the same
    forward.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.handed_on: Selection | None = None
        # Whether what is kept may be computed again, and whether an earlier one still may be.
        self.pending = self.stale = False

    def forward(self, x: Tensor) -> Selection:
        selection = super().forward(x)
        if not is_recomputing():
            self.stale, self.pending = self.pending, torch.is_grad_enabled()
            self.handed_on = selection
        return selection

    def hand_on(self, selections: int) -> Selection:
        """The last decision. Raises UserError where it is not one on so many images, or of another forward."""
        if again := is_recomputing():
            self.pending = False
        found = self.handed_on
        if found is None or len(found.expert_ids) != selections or (again and self.stale):
            raise UserError(
                "a block was run without the first MoE layer, which decides for all of them (router_scope 'model'): "
                "run the whole model, and with activation checkpointing one backward after each forward"
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "handed_on": None, "pending": False, "stale": False}


class FollowingRouter(Router):
    """Takes the decision of another layer's router; it has no parameters."""

    decides = False

    def __init__(self, leader: LeadingRouter) -> None:
        super().__init__()
        self.top_k = leader.top_k
        self._leader = (leader,)  # a tuple hides it from torch: it is a submodule of its own layer

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        """The leader's."""
        return self._leader[0].weight

    def forward(self, x: Tensor) -> Selection:
        """The leader's decision on the same images; x `[B, 1, D]` is not looked at."""
        return self._leader[0].hand_on(x.shape[0])

    def send(self, rows: Tensor, routed: Selection, experts: Experts) -> Tensor:
        return self._leader[0].send(rows, routed, experts)

    def assignments(self, rows: int) -> int:
        return self._leader[0].assignments(rows)

    def keep(self, experts: Sequence[int]) -> None:
        """Nothing: the leader forgets them."""
