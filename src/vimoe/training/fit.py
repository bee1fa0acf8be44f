"""From a recipe to a trained model: data, model, the loop over epochs, and the run folder it resumes from."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from torch import nn
from tqdm import tqdm

from vimoe.data.splits import Splits
from vimoe.distributed import barrier, process_group, rank
from vimoe.errors import UserError
from vimoe.tasks.classification import Classification
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.task import Task
from vimoe.tasks.windows import View
from vimoe.training.build import build_model
from vimoe.training.interrupt import listening
from vimoe.training.logs import Logs
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import Row, RunFolder
from vimoe.training.source import open_recipe_data
from vimoe.training.trainer import Trainer


def train(recipe: Recipe) -> RunFolder:
    """Run a recipe to its end, or from where its folder stands; every process of a `torchrun` calls it.

    Raises:
        UserError: Something in the recipe cannot be done.
        InterruptedRun: The process was asked to stop; the state is written.
    """
    run = RunFolder(Path(recipe.output))
    with process_group(pick_device(recipe.device)):
        run.check(recipe)
        if not run.finished:
            splits = open_recipe_data(recipe)
            task = recipe_task(recipe, splits)
            fit(build_model(recipe, splits), splits, task, recipe, run)
    return run


def recipe_task(recipe: Recipe, splits: Splits) -> Task:
    """What the recipe trains for.

    Raises:
        UserError: The task and another setting of the recipe exclude each other.
    """
    classes = len(splits.class_names)
    if recipe.task == "classification":
        return Classification(classes, recipe.smoothing)
    if recipe.mixup or recipe.cutmix:
        raise UserError("mixup and cutmix mix the labels of whole images: leave them 0 for segmentation")
    return Segmentation(classes, recipe.smoothing, View(recipe.short_side), recipe.reduce_zero_label)


def fit(model: nn.Module, splits: Splits, task: Task, recipe: Recipe, run: RunFolder) -> None:
    """Train `model` as the recipe says, from where `run` stands, and write the finished model.

    Args:
        model: The model to train, in place.
        splits: `train` is learned from, `val` is evaluated after every epoch.
        task: Loss and metric.
        recipe: The run's recipe; `run` was checked with it.
        run: The run's folder.

    Raises:
        UserError: The data is smaller than a step, too many images are broken, the loss is no longer finite, or a
            file cannot be written.
        InterruptedRun: The process was asked to stop; the state is written.
    """
    trainer = Trainer(model, splits, task, recipe, run)
    first = rank() == 0
    with ExitStack() as stack:
        if first:
            stack.enter_context(run.locked())
        stop = stack.enter_context(listening())
        rows = trainer.resume()
        if first:
            run.write_recipe(recipe)
        logs = stack.enter_context(Logs(run.path, recipe)) if first else None
        while trainer.position.epoch < recipe.epochs:
            row = trainer.finish_epoch(stop)
            rows = [*rows[: row["epoch"] - 1], row]
            if logs is not None:
                run.write_rows(rows)
                logs.add(row)
                _report(row, task, recipe)
            trainer.write_state()
        trainer.save_model(run.model)
        barrier()


def _report(row: Row, task: Task, recipe: Recipe) -> None:
    metric = row[f"val_{task.metric}"]
    line = f"epoch {row['epoch']:3}/{recipe.epochs}  loss {row['loss']:.3f}  val {task.metric} {metric:.1f}"
    # On a terminal every epoch; in a log ten lines a run are enough.
    if sys.stderr.isatty() or row["epoch"] % max(1, recipe.epochs // 10) == 0 or row["epoch"] == recipe.epochs:
        tqdm.write(f"  {line}  {row['seconds']:.0f} s", file=sys.stderr)
    for block, metrics in row["routing"].items():
        if metrics["max_load"] > 0.9:
            tqdm.write(
                f"  the router of block {block} has collapsed: {metrics['max_load']:.0%} of the epoch went to one "
                "expert; a larger balance_weight spreads them",
                file=sys.stderr,
            )
