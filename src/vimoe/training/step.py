"""What a batch does to a model: forward, backward, and the optimiser's step where it completes one.

What is drawn at random (augmentation, mixing, dropout, router noise) depends on the seed and the batch's number alone,
so that a run that was interrupted goes on as if it had not been.
"""

import random

import numpy as np
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vimoe.data.epoch_order import generator
from vimoe.data.splits import Splits
from vimoe.distributed import rank, world_size
from vimoe.errors import UserError
from vimoe.moe.balance import update_balance
from vimoe.moe.losses import routing_loss
from vimoe.tasks.task import Task
from vimoe.training.optimizer import build_optimisation
from vimoe.training.parallel import no_sync
from vimoe.training.recipe import Recipe
from vimoe.vit.blocks import moe_layers
from vimoe.vit.upcycle import get_config


class TrainingStep:
    """All that changes the weights: optimiser, schedule, gradient scaler, mixing, the routing's losses.

    Args:
        model: The whole model; its weights are changed in place.
        ddp_model: What is called in training: the part of the model that runs, with what keeps copies equal around it.
        ema: The averaged weights that go along with each step, if any.
        splits: Their `augment` and the number of classes.
        task: Its loss.
        recipe: All else.
        device: Where the model is.
        batches: Batches of an epoch.

    Raises UserError if the recipe asks for what cannot be done.
    """

    def __init__(
        self,
        model: nn.Module,
        ddp_model: nn.Module,
        ema: ModelEmaV3 | None,
        splits: Splits,
        task: Task,
        recipe: Recipe,
        device: str,
        batches: int,
    ) -> None:
        self.model, self.ddp_model, self.ema = model, ddp_model, ema
        self.task, self.recipe, self.device = task, recipe, device
        self.batches, self.steps = batches, batches // recipe.accumulate  # of an epoch
        self.augment = splits.augment if recipe.augment else None
        self.optimizer, self.schedule = build_optimisation(model, recipe, self.steps)
        scaled = recipe.amp and recipe.amp_dtype == "float16"
        self.scaler = torch.amp.GradScaler(device.split(":")[0], enabled=scaled)
        self.mixup = _mixup(recipe, len(splits.class_names))
        routers = [layer.router for layer in moe_layers(model).values() if layer.router.top_k]
        self.biased = any(router.bias is not None for router in routers)
        self.routing_weights = _routing_weights(recipe, self.biased) if routers else {}
        config, self.expert_of = get_config(model), None
        if config is not None and recipe.guides:
            self.expert_of = torch.tensor(config.guide, device=device)

    def batch(self, images: Tensor, labels: Tensor, epoch: int, batch: int) -> Tensor:
        """Train on a batch of an epoch, both counted from 0.

        Gives the task's mean loss of this process's images, on the device: nothing is waited for. Where a loss of the
        routing is not finite, neither is it.
        """
        recipe, number = self.recipe, epoch * self.batches + batch
        completes = (batch + 1) % recipe.accumulate == 0
        key = ("step", recipe.seed, number) if rank() == 0 else ("step", recipe.seed, number, rank())
        drawn = generator(*key).initial_seed()
        torch.manual_seed(drawn)
        np.random.seed(drawn)
        random.seed(drawn)
        images, targets = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        if self.augment:
            images = self.augment(images, generator("augment", *key[1:]))
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        with no_sync(self.ddp_model, not completes):
            with torch.autocast(self.device.split(":")[0], getattr(torch, recipe.amp_dtype), enabled=recipe.amp):
                loss = total = self.task.loss(self.ddp_model(images), targets)
                if self.routing_weights:
                    guided = None if self.expert_of is None else (targets, self.expert_of)
                    total = loss + routing_loss(self.model, **self.routing_weights, guided=guided)
            self.scaler.scale(total / recipe.accumulate).backward()
        if completes:
            self._update(epoch * self.steps + batch // recipe.accumulate)
        return torch.where(total.isfinite(), loss, total).detach()

    def _update(self, step: int) -> None:
        self.schedule.step_update(step)
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.biased:
            update_balance(self.model, self.recipe.balance_rate)
        if self.ema is not None:
            self.ema.update(self.model)


def _mixup(recipe: Recipe, classes: int) -> Mixup | None:
    if not (recipe.mixup or recipe.cutmix):
        return None
    if (share := recipe.batch_size // world_size()) % 2:
        raise UserError(f"mixup and cutmix mix pairs of images: {share} in a batch of each process is odd")
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=classes)  # the task's loss smooths


def _routing_weights(recipe: Recipe, biased: bool) -> dict[str, float]:
    """Of each loss of the routing; none where all are 0. A bias balances instead of the balance loss."""
    weights = {name: getattr(recipe, f"{name}_weight") for name in ("balance", "importance", "load", "z")}
    if biased:
        weights["balance"] = 0.0
    if recipe.guides:
        weights["guide"] = recipe.guide_weight
    return weights if any(weights.values()) else {}
