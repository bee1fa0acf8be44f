"""One process or many: rank, world size, and what all processes add up. With one process nothing here does anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vimoe.errors import UserError

T = TypeVar("T")


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the process group that `torchrun` describes, for as long as the block lasts; with CUDA, of its own device.

    Raises UserError if the processes do not find each other, or another one has died.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
        yield
    except RuntimeError as error:
        if not is_network_error(error):
            raise
        raise UserError("another process of this run has died; the same command goes on from the last state") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_network_error(error: Exception) -> bool:
    """Whether another process cannot be reached: gloo raises a plain RuntimeError where NCCL raises a DistError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def is_distributed() -> bool:
    """Whether several processes work together (under `torchrun`)."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes, in place; every process must call it alike."""
    if is_distributed():
        for tensor in tensors:
            dist.all_reduce(tensor)


def all_reduce_numbers(*values: float) -> list[float]:
    """The sum of each number over all processes, known alike to every one; every process must call it alike.

    The numbers travel through main memory: no GPU is waited for.
    """
    if not is_distributed():
        return list(values)
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together)
    return together.tolist()


def all_gather(value: T) -> list[T]:
    """Every process's value, by rank, known alike to every one; every process must call it alike."""
    if not is_distributed():
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Go on when every process has come here."""
    all_reduce_numbers(0.0)
