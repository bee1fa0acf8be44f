"""One run's training: its weights, optimiser and position, what a step does, and how all of it is taken up again.

What a step draws at random (order, augmentation, mixing, dropout, router noise) depends on the seed and the step's
number alone, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vimoe.data.loaders import training_batches
from vimoe.data.splits import Splits, generator
from vimoe.distributed import all_reduce_numbers, barrier, is_distributed, rank, world_size
from vimoe.errors import UserError
from vimoe.moe.losses import balance_loss
from vimoe.tasks.task import Task
from vimoe.training.health import EpochLoad, routing_health
from vimoe.training.interrupt import InterruptedRun, StopRequest
from vimoe.training.optimizer import build_optimisation, freeze_all_but_experts
from vimoe.training.parallel import gather_model, no_sync, pick_device, shard_fsdp, wrap_ddp
from vimoe.training.progress import Progress
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import Row, RunFolder
from vimoe.training.shards import read_shards, write_shards
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.meta import meta_clone


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        epoch: The epoch it is in, from 0.
        batch: Batches of it that are done.
        loss: Sum of their losses.
        seconds: Training time so far.
    """

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    seconds: float = 0.0


class Trainer:
    """What changes while a run goes on: weights, optimiser, position, and the images found broken.

    Args:
        model: The model to train, in place.
        splits: Its images.
        task: Loss and metric.
        recipe: The run's recipe.
        run: The run's folder.

    Raises:
        UserError: The data is smaller than a step, or the recipe asks for what cannot be done.
    """

    def __init__(self, model: nn.Module, splits: Splits, task: Task, recipe: Recipe, run: RunFolder) -> None:
        self.model, self.splits, self.task, self.recipe, self.run = model, splits, task, recipe, run
        self.device = pick_device(recipe.device)
        self.batches = len(splits.train) // recipe.batch_size
        self.steps = self.batches // recipe.accumulate
        if not self.steps:
            raise UserError(
                f"batch_size {recipe.batch_size} (accumulate {recipe.accumulate}) is larger than the training data"
            )
        if recipe.freeze:
            freeze_all_but_experts(model)
        model.to(self.device)
        if recipe.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        self.ema = ModelEmaV3(model, decay=recipe.model_ema_decay) if recipe.model_ema else None
        self.unsharded = model
        if recipe.fsdp and is_distributed():
            self.unsharded = meta_clone(model)
            shard_fsdp(model)
            if self.average is not None:
                shard_fsdp(self.average)
        if recipe.compile:
            model.compile()
        self.ddp_model = wrap_ddp(model, recipe.batch_size)
        self.optimizer, self.schedule = build_optimisation(model, recipe, self.steps)
        scaled = recipe.amp and recipe.amp_dtype == "float16"
        self.scaler = torch.amp.GradScaler(self.device.split(":")[0], enabled=scaled)
        self.mixup = None
        if recipe.mixup or recipe.cutmix:
            classes = len(splits.class_names)
            self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=classes)
        self.balanced = recipe.balance_weight > 0 and bool(moe_layers(model))
        self.position = Position()
        self.load = EpochLoad()
        self.broken: set[str] = set()

    @property
    def average(self) -> nn.Module | None:
        """The model with the averaged weights, if there is one."""
        return None if self.ema is None else self.ema.module

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and kept."""
        return self.model if self.average is None else self.average

    def save_model(self, folder: Path) -> None:
        """Write the evaluated model's folder; all processes call this together."""
        whole = gather_model(self.eval_model, self.unsharded)
        if rank() == 0:
            self.task.save(whole, folder, self.splits)

    def resume(self) -> list[Row]:
        """Go back to where the run folder stands; gives the rows of the epochs that are done."""
        if self.recipe.fsdp:
            state = read_shards(self.run.checkpoints, self.model, self.optimizer, self.average)
        elif state := self.run.read_state():
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["ema"])
        barrier()
        if state is None:
            return []
        self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])
        self.broken = set(state["broken"])
        return self.run.read_rows()[: self.position.epoch]

    def write_state(self) -> None:
        """Write all that a later process needs to go on from here; all processes call this together."""
        rest = {
            "scaler": self.scaler.state_dict(),
            "position": asdict(self.position),
            "broken": sorted(self.broken),
        }
        if self.recipe.fsdp:
            write_shards(self.run.checkpoints, self.model, self.optimizer, self.average, rest)
        elif rank() == 0:
            self.run.write_state(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "ema": {} if self.average is None else self.average.state_dict(),
                    **rest,
                }
            )

    def finish_epoch(self, stop: StopRequest) -> Row:
        """Train the rest of the current epoch, evaluate, and move on to the next one."""
        recipe, position, started = self.recipe, self.position, time.perf_counter()
        epoch, before, saved = position.epoch, position.seconds, started
        used = self.steps * recipe.accumulate  # batches that do not fill a step are left out
        progress = Progress(epoch + 1, recipe.epochs, used, position.batch, recipe.log_interval, rank() == 0)
        loader = training_batches(
            self.splits.train,
            recipe.batch_size,
            recipe.seed,
            epoch,
            position.batch,
            recipe.workers,
            self._note_broken,
            repeats=recipe.aug_repeats,
            part=(rank(), world_size()),
        )
        self.ddp_model.train()
        for images, labels in progress.waiting(loader):
            if position.batch >= used:
                break
            position.loss += self.train_batch(images, labels)
            position.batch += 1
            progress.step(recipe.batch_size, position.loss / position.batch, self._lr())
            if position.batch % recipe.accumulate == 0:
                position.seconds = before + time.perf_counter() - started
                due = time.perf_counter() - saved > 60 * recipe.checkpoint_minutes
                asked, wanted = all_reduce_numbers(stop.asked, due and rank() == 0)
                if asked or wanted:
                    self.write_state()
                    saved = time.perf_counter()
                if asked:
                    progress.close()
                    raise InterruptedRun(f"stopped in epoch {epoch + 1}; the same command goes on from here")
        progress.close()
        row: Row = {"epoch": epoch + 1, "loss": position.loss / max(1, position.batch), "lr": self._lr()}
        row |= progress.metrics()
        metrics = self.task.evaluate(self.eval_model, self.splits.val, self.device, recipe.workers)
        row |= {f"val_{key}": value for key, value in metrics.items()}
        row["seconds"] = before + time.perf_counter() - started
        row["routing"] = routing_health(self.model, self.load)
        self.position, self.load = Position(epoch=epoch + 1, seconds=row["seconds"]), EpochLoad()
        return row

    def _lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def train_batch(self, images: Tensor, labels: Tensor) -> float:
        """Forward and backward of one batch, and the optimiser's step where it completes one.

        Returns:
            The mean loss over all processes' images.
        """
        recipe, batch = self.recipe, self.position.epoch * self.batches + self.position.batch
        step = self.position.epoch * self.steps + self.position.batch // recipe.accumulate
        completes = (self.position.batch + 1) % recipe.accumulate == 0
        key = ("step", recipe.seed, batch) if rank() == 0 else ("step", recipe.seed, batch, rank())
        drawn = generator(*key).initial_seed()
        torch.manual_seed(drawn)
        np.random.seed(drawn)
        random.seed(drawn)
        images, targets = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        if self.splits.augment and recipe.augment:
            images = self.splits.augment(images, generator("augment", *key[1:]))
        if self.mixup is not None:
            even = len(images) - len(images) % 2  # timm mixes pairs
            images, targets = self.mixup(images[:even], targets[:even])
        with no_sync(self.ddp_model, not completes):
            with torch.autocast(self.device.split(":")[0], getattr(torch, recipe.amp_dtype), enabled=recipe.amp):
                loss = self.task.loss(self.ddp_model(images), targets)
                if self.balanced:
                    loss = loss + recipe.balance_weight * balance_loss(self.model)
            self.scaler.scale(loss / recipe.accumulate).backward()
        self.load.add(self.model)
        if completes:
            self._step(step)
        value = all_reduce_numbers(loss.item())[0] / world_size()
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} at step {step} (epoch {self.position.epoch + 1}): "
                f"try a lower lr than {recipe.lr}; the norms of the blocks' weights are {_norms(self.model)}"
            )
        return value

    def _step(self, step: int) -> None:
        self.schedule.step_update(step)
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)

    def _note_broken(self, line: str) -> None:
        if line in self.broken:
            return
        self.broken.add(line)
        self.run.write_skipped(self.broken, rank())
        if len(self.broken) > self.recipe.max_broken * len(self.splits.train):
            raise UserError(
                f"{len(self.broken)} of {len(self.splits.train)} training images are broken, more than max_broken "
                f"{self.recipe.max_broken:g} allows: {line}"
            )


def _norms(model: nn.Module) -> str:
    """The norm of each block's weights, for the line that tells of a loss that is not finite."""
    norms = [nn.utils.get_total_norm(block.parameters()).item() for block in find_backbone(model).blocks]
    return ", ".join(f"{norm:.3g}" for norm in norms)
