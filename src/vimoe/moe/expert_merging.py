"""Several FFNs as one: their weighted mean, once like hidden units stand at like places.

An FFN computes the same with its hidden units in any order, and training gives experts an order of their own where they
did not start as copies. So units are matched before the mean is taken (Ainsworth et al. 2023, "Git Re-Basin", weight
matching). The mean by load is that of M-SMoE (Li et al. 2024). Parameters go by their names in the FFN, as in
`vimoe.moe.slices`; E experts, H hidden units. Units that differ by a scale that the activation would allow are not
recognised.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def merged_experts(
    stacked: Mapping[str, Tensor], kept: Sequence[int], load: Tensor, packed: bool
) -> tuple[dict[str, Tensor], list[int]]:
    """Merge all other experts into the kept ones, each into the one whose weights are nearest to its own.

    An expert without load has no part in a mean, unless it is the kept one and no other of its group has any.

    Args:
        stacked: Parameters of the experts, `[E, …]`.
        load: `[E]` the weights of the means, of any scale.
        packed: Whether `fc1` holds a gate beside its map.

    Returns:
        The parameters of the kept experts in their order, and for each of the E experts its place among them.
    """
    experts = [{name: value[e].double() for name, value in stacked.items()} for e in range(len(load))]
    shares, places = load.double().tolist(), list[int]()
    groups = [[(shares[e], experts[e])] for e in kept]
    for e, expert in enumerate(experts):
        if e in kept:
            places.append(list(kept).index(e))
            continue
        candidates = [aligned(expert, experts[other], packed) for other in kept]
        distances = [_distance(one, experts[other]) for one, other in zip(candidates, kept, strict=True)]
        places.append(distances.index(min(distances)))
        groups[places[-1]].append((shares[e], candidates[places[-1]]))
    means = [_mean(group) for group in groups]
    return {name: torch.stack([mean[name] for mean in means]).to(value) for name, value in stacked.items()}, places


def aligned(ffn: Mapping[str, Tensor], other: Mapping[str, Tensor], packed: bool) -> dict[str, Tensor]:
    """The first FFN with its hidden units in the order that brings its weights nearest to the other's."""
    from scipy.optimize import linear_sum_assignment  # the library does without SciPy until experts are merged

    likeness = _by_unit(other, packed) @ _by_unit(ffn, packed).T
    order = torch.from_numpy(linear_sum_assignment(likeness.cpu().numpy(), maximize=True)[1]).to(likeness.device)
    return {name: _reordered(name, value, order, packed) for name, value in ffn.items()}


def _reordered(name: str, value: Tensor, order: Tensor, packed: bool) -> Tensor:
    if name == "fc2.bias":
        return value
    if name == "fc2.weight":
        return value[:, order]
    return torch.cat([block[order] for block in _blocks(name, value, packed)])


def _by_unit(ffn: Mapping[str, Tensor], packed: bool) -> Tensor:
    """`[H, ·]` all weights of each unit."""
    columns = []
    for name, value in ffn.items():
        if name != "fc2.bias":
            rows = value.T if name == "fc2.weight" else value
            columns += [block.reshape(len(block), -1) for block in _blocks(name, rows, packed)]
    return torch.cat(columns, 1)


def _blocks(name: str, rows: Tensor, packed: bool) -> tuple[Tensor, ...]:
    """The rows of a map into the hidden layer, once for each unit."""
    return rows.chunk(2 if packed and name.startswith("fc1.") else 1)


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(float((value - other[name]).square().sum()) for name, value in one.items())


def _mean(group: Sequence[tuple[float, Mapping[str, Tensor]]]) -> Mapping[str, Tensor]:
    total = sum(share for share, _ in group)
    if len(group) == 1 or not total:
        return group[0][1]
    return {name: sum(share * ffn[name] for share, ffn in group) / total for name in group[0][1]}  # type: ignore[misc]
