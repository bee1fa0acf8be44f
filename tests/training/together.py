"""A run of a tiny recipe by several processes, as torchrun would start them."""

import json
import multiprocessing
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vimoe.errors import UserError
from vimoe.training.interrupt import InterruptedRun
from vimoe.training.recipe import Recipe
from vimoe.training.source import open_recipe_data
from vimoe.training.trainer import Trainer


def run_together(recipe: Recipe, processes: int, **changes: Any) -> list[dict[str, Any]]:
    """Of each process: the sum of the epoch's losses before each batch, and how it ended. See `_run` for `changes`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    said = Path(recipe.output).with_suffix(".said")
    said.mkdir(parents=True, exist_ok=True)
    workers = [
        context.Process(target=_run, args=(recipe, rank, processes, port, said), kwargs=changes)
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(1200)  # importing torch alone takes minutes on a machine that has much else to do
    for worker in (hanging := [worker for worker in workers if worker.is_alive()]):
        worker.kill()
    assert not hanging, "a process hangs"
    return [json.loads(path.read_text()) for path in sorted(said.iterdir())]


def _run(
    recipe: Recipe, rank: int, processes: int, port: int, said: Path, stop_at: int = 0, die_at: int = 0, val: int = 0
) -> None:
    """Train; process 0 gets a SIGTERM at batch `stop_at`, process 1 dies at batch `die_at`, `val` images decide."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from vimoe.training import fit as home
    from vimoe.training import trainer

    trainer.SYNC_SECONDS = 0.0  # the processes agree after every step
    losses = list[float]()
    train_batch, batches = Trainer.train_batch, 0

    def noted(self: Trainer, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal batches
        batches += 1
        losses.append(self.position.loss)
        if rank == 0 and batches == stop_at:
            signal.raise_signal(signal.SIGTERM)
        if rank == 1 and batches == die_at:
            os._exit(9)
        return train_batch(self, images, labels)

    Trainer.train_batch = noted  # type: ignore[method-assign]
    if val:
        home.__dict__["open_recipe_data"] = lambda recipe: _fewer(open_recipe_data(recipe), val)
    end = "finished"
    try:
        home.train(recipe)
    except (UserError, InterruptedRun) as error:
        end = str(error)
    (said / str(rank)).write_text(json.dumps({"losses": losses, "end": end}))


def _fewer(splits: Any, val: int) -> Any:
    return replace(splits, val=type(splits.val)(splits.val.images[:val], splits.val.targets[:val]))
