"""Experts as low-rank differences from the shared expert: stored size rises by percents, not by whole FFNs.

A routed expert has the shared expert's first map plus a low-rank one, and a low-rank second map:
E_i(x) = U₂D₂ act((W + U₁D₁) x + b). U starts at 0, so E_i(x) = 0 and the layer computes what the FFN did, whatever the
gates. The idea of a base and small differences is that of DeRS (Huang et al., CVPR 2025), the shape LoRA's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.moe.rows import Rows


class LowRank(nn.Module):
    """`W + up[e] @ down[e]` in the place of a stacked linear map.

    `linear` stays the shared expert's own; it gives the sizes and, if `based`, W and the bias, which otherwise are 0.
    """

    def __init__(self, linear: nn.Linear, num_experts: int, rank: int, based: bool) -> None:
        super().__init__()
        new, learns = linear.weight.new_empty, linear.weight.requires_grad
        self.down = nn.Parameter(new(num_experts, rank, linear.in_features), requires_grad=learns)
        self.up = nn.Parameter(new(num_experts, linear.out_features, rank).zero_(), requires_grad=learns)
        nn.init.uniform_(self.down, -1 / math.sqrt(linear.in_features), 1 / math.sqrt(linear.in_features))
        self.based = based
        self._linear = (linear,)  # a tuple hides it from torch: it is a submodule of the shared expert

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """The linear map of each row's expert: `[R, in]` to `[R, out]`."""
        difference = rows.linear(rows.linear(x, self.down, None), self.up, None)
        linear = self._linear[0]
        return difference + F.linear(x, linear.weight, linear.bias) if self.based else difference

    def dense(self) -> dict[str, Tensor]:
        """`weight` `[E, out, in]` and, where the map has one, `bias` `[E, out]`; gradients flow through both."""
        linear = self._linear[0]
        values = {"weight": self.up @ self.down + (linear.weight if self.based else 0)}
        if linear.bias is not None:
            values["bias"] = (linear.bias * self.based).expand(len(self.up), -1)
        return values

    def mixed(self, weights: Tensor) -> dict[str, nn.Parameter]:
        """`weight` and `bias` of the weighted sum of the experts; `weights` is `[E]`."""
        learns = self.up.requires_grad
        return {
            name: nn.Parameter(torch.einsum("e,e...->...", weights.to(value), value.detach()), requires_grad=learns)
            for name, value in self.dense().items()
        }

    def extra_repr(self) -> str:
        experts, rank, width = self.down.shape
        return f"{width} to {self.up.shape[1]}, num_experts={experts}, rank={rank}, based={self.based}"
