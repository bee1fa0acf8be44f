"""One process or many: who this one is, and sums over all. With one process nothing here does anything."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def are_many() -> bool:
    """Whether several processes work together (under `torchrun`)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if are_many() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if are_many() else 1


def sum_over_processes(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes, in place; every process must call it alike.

    The sum runs on the device that the process group works on: a CPU tensor is moved there and back.
    """
    if not are_many():
        return
    device = "cuda" if dist.get_backend() == "nccl" else None
    for tensor in tensors:
        moved = tensor.to(device) if device and not tensor.is_cuda else tensor
        dist.all_reduce(moved)
        if moved is not tensor:
            tensor.copy_(moved)
