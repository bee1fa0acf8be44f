"""An FFN cut into slices of its hidden units, and put together again; parameters by their names in the FFN."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# The maps into the hidden layer have its units as rows (two blocks of rows where a gate is packed into `fc1`), the map
# out of it has them as columns. Its bias belongs to no unit.


def take_slice(name: str, value: Tensor, number: int, slices: int, packed: bool) -> Tensor:
    """The part of an FFN's parameter that belongs to one of `slices` equal slices of the hidden units."""
    if name == "fc2.bias":
        return value
    axis = int(name == "fc2.weight")
    blocks = value.chunk(2 if packed and not axis else 1, axis)
    return torch.cat([block.chunk(slices, axis)[number] for block in blocks], axis)


def join_slices(name: str, values: Sequence[Tensor], packed: bool) -> Tensor:
    """The inverse of `take_slice`, from the values of all slices; the mean where they have no units."""
    if name == "fc2.bias":
        return torch.stack(list(values)).mean(0)
    axis = int(name == "fc2.weight")
    blocks = zip(*(value.chunk(2 if packed and not axis else 1, axis) for value in values), strict=True)
    return torch.cat([part for block in blocks for part in block], axis)


@torch.no_grad()
def redraw_units(parameters: Mapping[str, Tensor], share: float, packed: bool) -> None:
    """Draw a random share of each expert's hidden units anew, in place (Drop-Upcycling, Nakamura et al. 2025, 3.2).

    Weights and biases of a unit become normal numbers with the mean and deviation of those that they replace. The
    stacked `parameters` go by their names.
    """
    outgoing = parameters["fc2.weight"]
    redrawn = round(share * outgoing.shape[2])
    for expert in range(len(outgoing) if redrawn else 0):
        units = torch.randperm(outgoing.shape[2])[:redrawn].to(outgoing.device)
        for name, stacked in parameters.items():
            if name == "fc2.bias" or name.startswith("norm."):
                continue
            value = stacked[expert].T if name == "fc2.weight" else stacked[expert]
            for block in value.chunk(2 if packed and name.startswith("fc1.") else 1):
                old = block[units]
                block[units] = old.mean() + old.std(correction=0) * torch.randn_like(old)
