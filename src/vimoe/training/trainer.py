"""One run's training: its weights and position, what an epoch does, and how all of it is resumed.

The order of the images depends on the seed and the epoch's number alone, and what a step draws on the step's
(`vimoe.training.step`), so that a run that was interrupted goes on as if it had not been.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vimoe.data.epoch_order import generator
from vimoe.data.images import class_counts, class_weights, image_labels
from vimoe.data.loaders import training_batches
from vimoe.data.splits import Splits
from vimoe.distributed import all_reduce_numbers, is_distributed, rank, world_size
from vimoe.errors import UserError
from vimoe.tasks.task import Task
from vimoe.training.broken_images import BrokenImages
from vimoe.training.feature_cache import cached_features
from vimoe.training.health import RoutingHealth
from vimoe.training.interrupt import InterruptedRun, StopRequest
from vimoe.training.optimizer import base_rate, first_trained_block, freeze
from vimoe.training.parallel import (
    gather_model,
    load_tensors,
    pick_device,
    shard_fsdp,
    state_tensors,
    total_norm,
    wrap_ddp,
)
from vimoe.training.progress import Progress
from vimoe.training.recipe import Recipe
from vimoe.training.resume_state import ResumeStates, State
from vimoe.training.run_folder import Row, RunFolder
from vimoe.training.step import TrainingStep
from vimoe.vit.blocks import moe_layers
from vimoe.vit.meta import meta_clone
from vimoe.vit.router_start import start_routers_at_centroids
from vimoe.vit.trunk import tail

# How often losses are looked at, and processes agree on stopping and on writing a state: a GPU is waited for then.
SYNC_SECONDS = 1.0


@dataclass
class Position:
    """Where a run stands: in which epoch (from 0), after how many batches of it, the sum of their losses, and the
    seconds of training so far.
    """

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    seconds: float = 0.0


class Trainer:
    """All that changes while a run goes on: weights (of `model`, in place), optimiser, position, rows, broken images.

    What a batch does is `step`'s.

    Raises UserError if the data is smaller than a step, or the recipe asks for what cannot be done.
    """

    def __init__(self, model: nn.Module, splits: Splits, task: Task, recipe: Recipe, run: RunFolder) -> None:
        self.model, self.splits, self.task, self.recipe, self.run = model, splits, task, recipe, run
        self.device = pick_device(recipe.device)
        self.image_weights = _image_weights(splits) if recipe.balance_classes == "sampler" else None
        self.batches = len(splits.train) // recipe.batch_size
        self.steps = self.batches // recipe.accumulate
        if not self.steps:
            raise UserError(
                f"batch_size {recipe.batch_size} (accumulate {recipe.accumulate}) is larger than the training data"
            )
        self.broken = BrokenImages(run, len(splits.train), recipe.max_broken)
        self.cut = first_trained_block(model, recipe)
        freeze(model, "trunk" if recipe.freezes_trunk else recipe.freeze, self.cut)
        model.to(self.device)
        self.states = ResumeStates(run.checkpoints)
        if recipe.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        if recipe.cache_features:
            skip = partial(self.broken.add, "train")
            self.splits = cached_features(splits, model, self.cut, recipe, self.device, skip)
        running = self._running(model)
        if recipe.router_start == "centroids" and recipe.upcycles and not self.states.found():
            start_routers_at_centroids(running, self._first_images(), generator("routers", recipe.seed))
        # Copied before they are sharded; right for a run that begins now.
        layers = moe_layers(model).items()
        self.initial_routers = {n: x.router.weight.detach().cpu().clone() for n, x in layers if x.router.top_k}
        self.ema = ModelEmaV3(model, decay=recipe.model_ema_decay) if recipe.model_ema else None
        self.unsharded = model
        if recipe.fsdp and is_distributed():
            self.unsharded = meta_clone(model)
            shard_fsdp(model)
            if self.average is not None:
                shard_fsdp(self.average)
        if recipe.compile:
            running.compile()
        called = wrap_ddp(running, recipe.batch_size)
        self.step = TrainingStep(model, called, self.ema, self.splits, task, recipe, self.device, self.batches)
        self.position, self.rows, self.health = Position(), list[Row](), RoutingHealth(model)
        self.saved: Position | None = None
        self._losses: list[Tensor] = []  # of the batches since the last look at them

    def _running(self, model: nn.Module) -> nn.Module:
        """The part of the model that runs: what is behind the trunk where the trunk's features are cached."""
        return tail(model, self.cut) if self.recipe.cache_features else model

    def _first_images(self, most: int = 1024) -> Tensor:
        """Training images as the first epoch shows them, the same ones on every process."""
        recipe, found = self.recipe, list[Tensor]()
        for number, (images, _) in enumerate(training_batches(self.splits.train, recipe.batch_size, recipe.seed, 0)):
            images = images.to(self.device)
            if self.splits.augment and recipe.augment:
                images = self.splits.augment(images, generator("routers", recipe.seed, number))
            found.append(images)
            if sum(map(len, found)) >= most:
                break
        return torch.cat(found)[:most]

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

    def resume(self) -> None:
        """Go back to where the folder stands. Raises UserError if no state is whole, or the images are others."""
        self.states.read(self._restore)

    def write_state(self) -> None:
        """Write all that a later process needs to go on from here; all processes call this together.

        Raises UserError if the weights are no longer finite, or a file cannot be written.
        """
        self._check_finite("norm of the weights", total_norm(self.model), self.position.batch - 1)
        state = {
            "scaler": self.step.scaler.state_dict(),
            "position": asdict(self.position),
            "rows": self.rows,
            "health": self.health.totals(),
            "broken": self.broken.gathered(),
            "images": len(self.splits.train),
            "classes": list(self.splits.class_names),
        }
        tensors = state_tensors(self.model, self.step.optimizer, self.average, self.recipe.fsdp)
        self.states.write(state | tensors, self.position.epoch, self.position.batch)
        self.saved = replace(self.position)

    def _restore(self, state: State) -> None:
        if (state["images"], state["classes"]) != (len(self.splits.train), list(self.splits.class_names)):
            raise UserError(
                f"the run began with {state['images']} training images of {len(state['classes'])} classes, there are "
                f"{len(self.splits.train)} of {len(self.splits.class_names)}: choose another --output"
            )
        position, rows = Position(**state["position"]), [dict(row) for row in state["rows"]]
        in_range = 0 <= position.batch <= self.batches and len(rows) == position.epoch <= self.recipe.epochs
        if not in_range or not math.isfinite(position.loss + position.seconds):
            raise ValueError("the position is not one of this run")
        load_tensors(self.model, self.step.optimizer, self.average, self.recipe.fsdp, state)
        self.step.scaler.load_state_dict(state["scaler"])
        self.health.restore(state["health"], rank() == 0)
        self.broken.restore(state["broken"])
        self.position, self.rows, self.saved = position, rows, replace(position)

    def finish_epoch(self, stop: StopRequest) -> Row:
        """Train the rest of the current epoch, evaluate, and move on to the next one; gives the epoch's row."""
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
            partial(self.broken.add, "train"),
            recipe.aug_repeats,
            (rank(), world_size()),
            self.image_weights,
        )
        self.step.ddp_model.train()
        first, pace, steps, looked = rank() == 0, 1.0, 0, started  # the first process's clock counts
        for images, labels in progress.waiting(loader):
            if position.batch >= used:
                break
            self._losses.append(self.train_batch(images, labels))
            position.batch += 1
            progress.step(recipe.batch_size)
            if position.batch % recipe.accumulate:
                continue
            steps += 1
            if steps < pace and (is_distributed() or not stop.asked):
                continue
            now = time.perf_counter()
            due = now - saved > 60 * recipe.checkpoint_minutes
            pace = _pace(steps, now - looked, min(SYNC_SECONDS, 60 * recipe.checkpoint_minutes))
            asked, save, pace = self._sync(stop.asked, first and due, first * pace)
            steps, looked = 0, now
            progress.show(position.loss / position.batch, base_rate(self.step.optimizer))
            if asked or save:
                position.seconds = before + now - started
                self.write_state()
                saved = time.perf_counter()
            if asked:
                progress.close()
                raise InterruptedRun(f"stopped in epoch {epoch + 1}; the same command goes on from here")
        self._sync()
        self._check_finite("norm of the weights", total_norm(self.model), position.batch - 1)
        progress.close()
        row: Row = {"epoch": epoch + 1, "loss": position.loss / max(1, position.batch)}
        row |= {"lr": base_rate(self.step.optimizer), **progress.metrics()}
        row["trained_params"] = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        skip = partial(self.broken.add, "val")
        val = self.task.evaluate(
            self._running(self.eval_model), self.splits.val, self.device, recipe.workers, skip, recipe.max_broken
        )
        row |= {f"val_{key}": value for key, value in val.items()}
        row["seconds"] = before + time.perf_counter() - started
        row["routing"] = self.health.metrics()
        self.rows.append(row)
        self.position, self.health = Position(epoch=epoch + 1, seconds=row["seconds"]), RoutingHealth(self.model)
        return row

    def train_batch(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on the batch at the present position; gives its mean loss, see `TrainingStep.batch`."""
        loss = self.step.batch(images, labels, self.position.epoch, self.position.batch)
        self.health.add()
        return loss

    def _sync(self, *numbers: float) -> list[float]:
        """Look at the losses since the last time; gives the sum of each number over all processes.

        Raises UserError if a loss is not finite.
        """
        losses = torch.stack(self._losses).tolist() if self._losses else []
        self._losses = []
        sums = all_reduce_numbers(*numbers, *losses)
        for batch, total in enumerate(sums[len(numbers) :], self.position.batch - len(losses)):
            self._check_finite("loss", total / world_size(), batch)
            self.position.loss += total / world_size()
        return sums[: len(numbers)]

    def _check_finite(self, what: str, value: float, batch: int) -> None:
        if not math.isfinite(value):
            step = self.position.epoch * self.steps + batch // self.recipe.accumulate
            raise UserError(
                f"the {what} is {value} at step {step} (epoch {self.position.epoch + 1}): try a lower lr than "
                f"{self.recipe.lr}, or a longer warm-up"
            )


def _image_weights(splits: Splits) -> Tensor:
    """`[N]` how often the sampler shows each training image, so that classes are shown alike."""
    labels, counts = image_labels(splits.train), class_counts(splits.train, len(splits.class_names))
    assert labels is not None  # images with masks were refused
    assert counts is not None
    return class_weights(counts)[labels]


def _pace(steps: int, seconds: float, wanted: float) -> int:
    """After how many steps to look again, so that it is about every `wanted` seconds; it grows slowly."""
    return max(1, min(2 * steps, int(steps * wanted / max(seconds, 1e-9))))
