"""Balance without a loss (DeepSeek-V3, 2024, section 2.1.2; Wang et al. 2024).

A router chooses by p + b and weighs by p. After every optimiser step b moves by a fixed step: up for experts that got
less than the mean, down for those that got more. No gradient of a loss disturbs the router.
"""

import torch
from torch import nn

from vimoe.distributed import all_reduce_sum
from vimoe.errors import UserError
from vimoe.moe.layer import moe_modules


@torch.no_grad()
def update_balance(model: nn.Module, rate: float = 0.001) -> None:
    """Move each router's bias against the load since the last call, over all processes.

    Every process calls it after `optimizer.step()`; `rate` is how far a bias moves. Loads are counted in whole numbers,
    so accumulation in parts and activation checkpointing change no bit. The mean of the bias stays 0.

    Raises UserError if no router has a bias (`balance="bias"`), or none chose anything in training since the last call.

    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    >>> logits = vimoe.upcycle(model, balance="bias")(torch.randn(8, 3, 32, 32))
    >>> logits.square().mean().backward()  # and `optimizer.step()`
    >>> vimoe.update_balance(model)
    """
    routers = [layer.router for layer in moe_modules(model).values()]
    if not any(router.bias is not None for router in routers):
        raise UserError("no router of this model has a bias: upcycle it with balance='bias'")
    if not any(router.assigned is not None for router in routers):
        raise UserError("the routers chose nothing in training since the last step: call update_balance once a step")
    for router in routers:
        bias, counts, router.assigned = router.bias, router.assigned, None
        if bias is not None and counts is not None:
            all_reduce_sum(counts)
            moved = bias + rate * (counts.sum() - len(counts) * counts).sign()
            bias.copy_(moved - moved.mean())
