"""What each of two processes does in the test of the global load; imports little, so that they start quickly."""

import os

import torch
import torch.distributed as dist

from vimoe.moe.losses import expert_load, load_balance_loss

GLOBAL_IDS = torch.tensor([[0, 1], [1, 0], [2, 0], [3, 2], [0, 3]])  # 2 selections of process 0, 3 of process 1
GLOBAL_PROBS = torch.arange(20.0).view(5, 4).sin().softmax(-1)


def share(rank: int) -> slice:
    return slice(0, 2) if rank == 0 else slice(2, 5)


def count_together(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    probs = GLOBAL_PROBS[share(rank)].clone().requires_grad_()
    ids = GLOBAL_IDS[share(rank)]
    loss = load_balance_loss(probs, ids)
    loss.backward()
    torch.save({"load": expert_load(ids, 4), "loss": loss.detach(), "grad": probs.grad}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
