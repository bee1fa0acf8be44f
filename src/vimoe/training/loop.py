"""The training loop: one recipe, one run folder, resumed where it stopped.

What a step draws at random (order, augmentation, dropout, router noise) depends on the seed and the step's
number alone, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import timm.optim
import timm.scheduler
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from vimoe.data.splits import EpochOrder, Splits, batches, generator
from vimoe.errors import UserError
from vimoe.moe.losses import balance_loss
from vimoe.tasks.task import Task
from vimoe.training.health import routing_health
from vimoe.training.recipe import Recipe
from vimoe.training.run import Row, RunFolder
from vimoe.vit.blocks import moe_layers
from vimoe.vit.checkpoint import save


def pick_device(name: str) -> str:
    """`auto` becomes `cuda` where there is one, else `cpu`.

    Raises:
        UserError: The device is not known, or not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def fit(model: nn.Module, splits: Splits, task: Task, recipe: Recipe, run: RunFolder) -> None:
    """Train `model` as the recipe says, from where `run` stands, and write the finished model.

    Args:
        model: The model to train, in place.
        splits: `train` is learned from, `val` is evaluated after every epoch.
        task: Loss and metric.
        recipe: The run's recipe; `run` was checked with it.
        run: The run's folder.

    Raises:
        UserError: The data is smaller than a batch, the loss is no longer finite, or a file cannot be written.
    """
    device = pick_device(recipe.device)
    model.to(device)
    steps = len(EpochOrder(len(splits.train), recipe.batch_size, recipe.seed, 0))
    if not steps:
        raise UserError(f"batch_size {recipe.batch_size} is larger than the training data")
    optimizer, schedule = _optimisation(model, recipe, steps)
    run.write_recipe(recipe)
    first, rows = 0, []
    if state := run.read_state():
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, rows = state["epoch"], run.read_rows()[: state["epoch"]]
    for epoch in range(first, recipe.epochs):
        row = _train_epoch(model, splits, task, recipe, optimizer, schedule, epoch, steps, device)
        row |= {f"val_{key}": value for key, value in task.evaluate(model, batches(splits.val), device).items()}
        row["seconds"] += rows[-1]["seconds"] if rows else 0.0
        rows.append(row | {"routing": routing_health(model)})
        run.write_rows(rows)
        run.write_state({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1})
        _report(row, task, recipe)
    save(model, run.model, extra={"label_names": list(splits.class_names)})


def _optimisation(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """timm's optimiser and schedule, which know layer decay; the schedule counts steps."""
    try:
        optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay if recipe.layer_decay < 1 else None,
        )
        schedule, _ = timm.scheduler.create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.epochs - recipe.warmup_epochs,  # warmup_prefix: what comes after the warm-up
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=0.0,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps,
            warmup_prefix=True,
        )
    except (AssertionError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"timm cannot make opt {recipe.opt!r} with sched {recipe.sched!r}: {error}") from error
    if schedule is None:
        raise UserError(f"timm knows no schedule {recipe.sched!r}")
    return optimizer, schedule


def _train_epoch(
    model: nn.Module,
    splits: Splits,
    task: Task,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    epoch: int,
    steps: int,
    device: str,
) -> Row:
    start = time.perf_counter()
    order = EpochOrder(len(splits.train), recipe.batch_size, recipe.seed, epoch)
    has_moe = bool(moe_layers(model)) and recipe.balance_weight > 0
    total = 0.0
    model.train()
    bar = tqdm(
        DataLoader(splits.train, batch_sampler=order), f"epoch {epoch + 1}/{recipe.epochs}", leave=False, disable=None
    )
    for i, (pictures, labels) in enumerate(bar):
        step = epoch * steps + i
        schedule.step_update(step)
        torch.manual_seed(generator("step", recipe.seed, step).initial_seed())
        if splits.augment and recipe.augment:
            pictures = splits.augment(pictures, generator("augment", recipe.seed, step))
        loss = task.loss(model(pictures.to(device)), labels.to(device))
        if has_moe:
            loss = loss + recipe.balance_weight * balance_loss(model)
        value = loss.item()
        if value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"the loss is {value} at step {step} (epoch {epoch + 1}): try a lower lr than {recipe.lr}")
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
        total += value
    lr = max(group["lr"] for group in optimizer.param_groups)
    return {"epoch": epoch + 1, "loss": total / steps, "lr": lr, "seconds": time.perf_counter() - start}


def _report(row: Row, task: Task, recipe: Recipe) -> None:
    metric = row[f"val_{task.metric}"]
    line = f"epoch {row['epoch']:3}/{recipe.epochs}  loss {row['loss']:.3f}  val {task.metric} {metric:.1f}"
    # On a terminal every epoch; in a log ten lines a run are enough.
    if sys.stderr.isatty() or row["epoch"] % max(1, recipe.epochs // 10) == 0 or row["epoch"] == recipe.epochs:
        tqdm.write(f"  {line}  {row['seconds']:.0f} s", file=sys.stderr)
