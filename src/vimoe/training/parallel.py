"""One model on many processes: copies kept equal (DDP), or its weights and optimiser state shared out (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vimoe.distributed import is_distributed, world_size
from vimoe.errors import UserError, first_line
from vimoe.vit.blocks import find_backbone


def pick_device(name: str) -> str:
    """`auto` becomes `cuda` where there is one (under torchrun each process's own), else `cpu`.

    Raises:
        UserError: The device is not known, or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(0, device=name)
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

    Raises:
        UserError: The batch cannot be shared out evenly.
    """
    if batch_size % world_size():
        raise UserError(f"batch_size {batch_size} is for all processes together: {world_size()} cannot share it evenly")
    if not is_distributed() or isinstance(model, FSDPModule):
        return model
    if next(model.parameters()).is_cuda:  # a process's share is too small for a batch norm of its own
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model)


@contextmanager
def no_sync(ddp_model: nn.Module, keep: bool) -> Iterator[None]:
    """Inside the block gradients are only added up, not yet exchanged between processes, if `keep`."""
    if isinstance(ddp_model, DistributedDataParallel) and keep:
        with ddp_model.no_sync():
            yield
    elif isinstance(ddp_model, FSDPModule):
        ddp_model.set_requires_gradient_sync(not keep)
        yield
    else:
        yield


def gather_model(model: nn.Module, unsharded: nn.Module) -> nn.Module:
    """The whole model on the CPU where its parameters are shared out (filled on process 0 alone), else itself.

    Args:
        model: The model that is trained.
        unsharded: A weightless copy of it, from before its parameters were shared out.
    """
    if not isinstance(model, FSDPModule):
        return model
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if whole:
        unsharded.load_state_dict(whole, assign=True)
    return unsharded
