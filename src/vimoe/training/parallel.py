"""One model on many processes: copies kept equal (DDP), or weights and optimiser state sharded (FSDP2)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vimoe.distributed import is_distributed, world_size
from vimoe.errors import UserError, first_line
from vimoe.vit.blocks import find_backbone


def pick_device(name: str) -> str:
    """`auto` is `cuda` (each process's own) or else `cpu`. Raises UserError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {first_line(error)}") from error
    return name


def shard_fsdp(model: nn.Module) -> None:
    """Give every process its shard of each block's parameters and of the rest (FSDP2), in place."""
    for block in find_backbone(model).blocks:
        fully_shard(block)
    fully_shard(model)


def wrap_ddp(model: nn.Module, batch_size: int) -> nn.Module:
    """What to call in training: the model itself, or a DDP around it where there are copies to keep equal.

    Raises UserError if the batch cannot be divided evenly.
    """
    if batch_size % world_size():
        raise UserError(f"batch_size {batch_size} is for all processes together: it does not divide by {world_size()}")
    if not is_distributed() or isinstance(model, FSDPModule):
        return model
    if next(model.parameters()).is_cuda:  # a process's share is too small for a batch norm of its own
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model)


@contextmanager
def no_sync(ddp_model: nn.Module, keep: bool) -> Iterator[None]:
    """Inside the block gradients are only added up, not yet exchanged between processes, if `keep`."""
    if isinstance(ddp_model, FSDPModule):
        ddp_model.set_requires_gradient_sync(not keep)
    with ddp_model.no_sync() if keep and isinstance(ddp_model, DistributedDataParallel) else nullcontext():
        yield


def gather_model(model: nn.Module, unsharded: nn.Module) -> nn.Module:
    """The whole model on the CPU where its parameters are sharded (filled on process 0 alone), else itself.

    `unsharded` is a weightless copy of it, from before its parameters were sharded.
    """
    if not isinstance(model, FSDPModule):
        return model
    whole = get_model_state_dict(model, options=_whole())
    if whole:
        unsharded.load_state_dict(whole, assign=True)
    return unsharded


def state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None, fsdp: bool
) -> dict[str, Any]:
    """State dicts of model, optimiser and averaged weights; with `fsdp` the whole tensors, on process 0 alone."""
    if fsdp:
        weights, moments = get_state_dict(model, optimizer, options=_whole())
        ema = {} if average is None else get_model_state_dict(average, options=_whole())
    else:
        weights, moments = model.state_dict(), optimizer.state_dict()
        ema = {} if average is None else average.state_dict()
    return {"model": weights, "optimizer": moments, "ema": ema}


def load_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None, fsdp: bool, state: dict[str, Any]
) -> None:
    """The inverse of `state_tensors`: every process gives it the whole state and takes its part.

    Raises:
        Exception: `state` is not of this model; of which kind is torch's to decide.
    """
    if fsdp:
        weights, moments = state["model"], state["optimizer"]
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=_whole())
        if average is not None:
            set_model_state_dict(average, state["ema"], options=_whole())
        return
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["ema"])


def _whole() -> StateDictOptions:
    return StateDictOptions(full_state_dict=is_distributed(), cpu_offload=is_distributed())


def total_norm(model: nn.Module) -> float:
    """The 2-norm of all parameters together; all processes call this together."""
    norm = nn.utils.get_total_norm(model.parameters())
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
