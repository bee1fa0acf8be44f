"""The resume state of a model whose weights are shared out: each process writes its own part of it.

A state is a folder `checkpoints/shards/` of torch's distributed checkpoints with a check sum of every file; the one
before it stays as `shards.before/`. It can be read by any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from vimoe.distributed import all_reduce_numbers, barrier, rank
from vimoe.errors import UserError

SUMS = "sums.json"


def write_shards(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None, rest: dict[str, Any]
) -> None:
    """Write the state whole, then move it to its place; all processes call this together.

    Args:
        folder: The run's folder of checkpoints.
        model: The model, sharded or not.
        optimizer: Its optimiser.
        average: The average of its weights, if there is one.
        rest: Numbers and tensors that are alike on all processes.

    Raises:
        UserError: A file cannot be written.
    """
    scratch, newest, before = folder / ".shards.writing", folder / "shards", folder / "shards.before"
    if rank() == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    barrier()
    try:
        with _alone_or_not():
            save(_tensors(model, optimizer, average), checkpoint_id=scratch)
        if rank() == 0:
            torch.save(rest, scratch / "rest.pt")
            sums = {path.name: _sum(path) for path in sorted(scratch.iterdir())}
            (scratch / SUMS).write_text(json.dumps(sums))
            if newest.exists():
                shutil.rmtree(before, ignore_errors=True)
                os.replace(newest, before)
            os.replace(scratch, newest)
    except (OSError, CheckpointException) as error:
        raise UserError(f"cannot write the resume state in {folder}: {str(error).splitlines()[0]}") from error
    barrier()


def read_shards(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> dict[str, Any] | None:
    """Fill model, optimiser and average from the newest state that is whole; gives the rest of it, None without one.

    Raises:
        UserError: There are states, but all are damaged.
    """
    found = [path for path in (folder / "shards", folder / "shards.before") if path.exists()]
    for path in found:
        if all_reduce_numbers(rank() == 0 and _is_whole(path))[0]:
            tensors = _tensors(model, optimizer, average)
            with _alone_or_not():
                load(tensors, checkpoint_id=path)
            weights, moments = tensors["model"], tensors["optimizer"]
            set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
            if average is not None:
                average.load_state_dict(tensors["average"])
            rest: dict[str, Any] = torch.load(path / "rest.pt", map_location="cpu", weights_only=True)
            return rest
        if rank() == 0:
            print(f"vimoe: {path} is damaged, the state before it is used", file=sys.stderr)
    if found:
        raise UserError(f"all resume states in {folder} are damaged: remove them to start this run anew")
    return None


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    tensors = {"model": weights, "optimizer": moments}
    return tensors if average is None else {**tensors, "average": average.state_dict()}


@contextmanager
def _alone_or_not() -> Iterator[None]:
    """torch warns where there is one process alone; that one knows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _is_whole(path: Path) -> bool:
    try:
        sums = json.loads((path / SUMS).read_text())
        return all(_sum(path / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
