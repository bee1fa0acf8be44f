"""What an expert is worth: the measured loss without it, the cheap stand-ins of the literature, and how far they agree.

Whatever the criterion, more is worth more. S selections of n rows each, k experts chosen for each, E experts.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from vimoe.analysis.paired import Estimate, Z
from vimoe.errors import UserError, suggest
from vimoe.moe.experts import Experts
from vimoe.moe.rows import RowsOfOne

CRITERIA = {
    "ablation": "points lost on held-out images when the router cannot choose it",
    "load": "share of the choices",
    "router-change": "by how much its router row became longer in training (arXiv 2405.16646)",
    "reap": "mean of gate times norm of its answer, over what it gets (REAP, arXiv 2510.13999)",
    "activation": "mean norm of its answer, over what it gets",
}


def check_criteria(criteria: Sequence[str]) -> None:
    """Raise a `UserError` where one is unknown or stands there twice."""
    for i, name in enumerate(criteria):
        if name not in CRITERIA:
            raise UserError(f"unknown criterion {name!r}{suggest(name, CRITERIA)}")
        if name in criteria[:i]:
            raise UserError(f"criterion {name!r} stands there twice")


def router_change(before: Tensor, after: Tensor) -> Tensor:
    """`[E]` by how much each row of a router became longer, from `[E, D]` and `[E, D]`; negative where it shrank.

    It is the difference of the norms, as in the authors' code, and not the norm of the difference.
    """
    return after.norm(dim=1) - before.norm(dim=1)


@torch.no_grad()
def answer_sums(experts: Experts, rows: Tensor, expert_ids: Tensor, gates: Tensor) -> Tensor:
    """`[3, E]` fp64 sums over the rows that each expert gets: of 1, of the norm of its answer, of gate times norm.

    Rows are `[S, n, D]`, ids and gates `[S, k]`. The quotients are `activation` and `reap`, see `mean_norms`.
    """
    sums = torch.zeros(3, experts.num_experts, dtype=torch.float64)
    for e in range(experts.num_experts):
        selections, places = (expert_ids == e).nonzero(as_tuple=True)
        if len(selections):
            answers = experts.feed_forward(rows[selections].flatten(0, 1), RowsOfOne(e))
            norms = answers.double().norm(dim=-1).view(len(selections), -1).cpu()
            weighted = (norms.sum(1) * gates[selections, places].cpu()).sum()
            sums[:, e] = torch.stack([torch.tensor(float(norms.numel())), norms.sum(), weighted])
    return sums


def mean_norms(sums: Tensor) -> dict[str, Tensor]:
    """`activation` and `reap`, `[E]` each, by the sum of what `answer_sums` gave; 0 for an expert that gets nothing.

    They are the same where all gates are 1, as straight-through gates are for one choice.
    """
    activation, reap = sums[1:] / sums[0].clamp(min=1)
    return {"activation": activation, "reap": reap}


def rank_agreement(scores: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> Estimate | None:
    """Spearman's rank correlation of two scores of experts, 1 for the same order; `[layers][experts]` of each.

    Several layers are taken together by the ranks within each, so that the worth of whole layers plays no part. The
    95 % interval is Fisher's with the variance of Bonett and Wright (2000), with a degree of freedom less for each
    further layer: it is about more experts like these. A perfect order counts there as one in which two neighbours
    of a layer changed places, so that it does not come without doubt. None where one of the two makes no difference
    between the experts of any layer.
    """
    one, other = (np.concatenate([_ranks(layer) for layer in each]) for each in (scores, others))
    if not (size := math.sqrt(float(one @ one) * float(other @ other))):
        return None
    value, n = float(one @ other) / size, len(one)
    if (free := n - len(scores) - 2) < 1:
        return Estimate(value, -1.0, 1.0)
    z = math.atanh(math.copysign(min(abs(value), max(0.0, 1 - 1 / size)), value))
    half = Z * math.sqrt((1 + value**2 / 2) / free)
    return Estimate(value, min(math.tanh(z - half), value), max(math.tanh(z + half), value))


def _ranks(scores: Sequence[float]) -> NDArray[np.float64]:
    """Ranks around 0, the mean one for equal scores."""
    ranks = stats.rankdata(scores)
    return np.asarray(ranks - ranks.mean())
