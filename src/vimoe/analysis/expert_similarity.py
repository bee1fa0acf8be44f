"""What the experts of a layer have become: which classes each one gets, and which two are the same."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimoe.analysis.analysis_result import ClassShare
from vimoe.analysis.observations import Counts
from vimoe.moe.experts import Experts
from vimoe.moe.rows import RowsOfOne


def classes_of_expert(counts: Counts, expert: int, most: int = 10) -> tuple[ClassShare, ...]:
    """An expert's most frequent classes by counts `[class, expert]`, the most frequent first; none if unused."""
    column, overall = counts[:, expert], counts.sum(1) / max(1, counts.sum())
    shares: NDArray[np.float64] = column / max(1, column.sum())
    order = np.argsort(-column, kind="stable")[:most]
    return tuple(ClassShare(int(c), float(shares[c]), float(shares[c] / overall[c])) for c in order if column[c])


@torch.no_grad()
def output_gram(experts: Experts, rows: Tensor) -> Tensor:
    """`[E, E]` dot products of what the experts answer to the same `rows` `[R, D]`, summed over them; fp64."""
    answers = torch.stack([experts.feed_forward(rows, RowsOfOne(e)).flatten() for e in range(experts.num_experts)])
    return (answers.float() @ answers.float().T).double().cpu()


def output_similarity(gram: Tensor) -> Tensor:
    """`[E, E]` likeness 2 ⟨a, b⟩ / (⟨a, a⟩ + ⟨b, b⟩) by the sum of what `output_gram` gave.

    It is 1 for the same answers, 0 for unrelated ones or one of size 0.
    """
    sizes = gram.diagonal()
    total = sizes[:, None] + sizes
    return torch.where(total > 0, 2 * gram / total.clamp(min=1e-300), 1.0).clamp(-1, 1).fill_diagonal_(1)
