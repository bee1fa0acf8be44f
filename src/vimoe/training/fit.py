"""From a recipe to a trained model: data, model, the loop over epochs, and the run folder it resumes from."""

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from vimoe.data.images import Images, class_counts, class_weights, is_uneven
from vimoe.data.splits import Splits
from vimoe.distributed import all_gather, barrier, is_network_error, process_group, rank
from vimoe.errors import UserError, first_line
from vimoe.files import write_text
from vimoe.tasks.classification import Classification
from vimoe.tasks.multilabel import Multilabel
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.task import Task
from vimoe.tasks.windows import View
from vimoe.training.build import build_model
from vimoe.training.data_keys import check_data_keys
from vimoe.training.ensemble_run import train_ensemble
from vimoe.training.guide import SuperClasses, dump_super_classes, guide_routers
from vimoe.training.interrupt import InterruptedRun, StopRequest, listening
from vimoe.training.logs import open_logs
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import Row, RunFolder
from vimoe.training.run_summary import run_summary, write_first_batch
from vimoe.training.source import open_recipe_data
from vimoe.training.trainer import Trainer

Introduce = Callable[[], None]


def train(recipe: Recipe, resume_changed: bool = False, say: Callable[[str], None] | None = None) -> RunFolder:
    """Run a recipe to its end, or from where its folder stands; every process of a `torchrun` calls it.

    With `resume_changed` also where the folder's run had another augmentation so far. With `say`, that is called with a
    summary before the first step, and `first_batch.jpg` is written.

    Raises UserError if something in the recipe cannot be done or a step failed, InterruptedRun if the process was asked
    to stop; the state is written then.

    >>> small = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    >>> recipe = vimoe.Recipe(dataset="digits", model_args=small, last=2, num_experts=4, epochs=1, output="runs/digits")
    >>> vimoe.train(recipe).finished
    True
    """
    check_data_keys(recipe)
    run = RunFolder(Path(recipe.output))
    with listening(at_once=True) as stop, process_group(pick_device(recipe.device)):
        changed = run.check(recipe, resume_changed)
        if not run.finished:
            splits = open_recipe_data(recipe)
            task = recipe_task(recipe, splits)

            def train_one(recipe: Recipe) -> RunFolder:
                run = RunFolder(Path(recipe.output))
                changed = run.check(recipe, resume_changed)
                if not run.finished:
                    model = build_model(recipe, splits)
                    groups = guide_routers(model, recipe, splits, task, run) if recipe.guides else {}
                    trainer = Trainer(model, splits, task, recipe, run)
                    best = best_key(recipe, splits, task.metric) if recipe.keep == "best" else ""
                    introduce = say and partial(_introduce, trainer, splits, say)
                    _fit(trainer, stop, changed, groups, introduce, best, splits.train)
                return run

            if recipe.baseline == "ensemble":
                train_ensemble(recipe, splits, task, run, changed, train_one)
            else:
                train_one(recipe)
    return run


def recipe_task(recipe: Recipe, splits: Splits) -> Task:
    """What the recipe trains for. Raises UserError if the task and another setting of the recipe exclude each other."""
    classes = len(splits.class_names)
    if recipe.task == "classification":
        weights = class_weights(_counts(splits)) if recipe.balance_classes == "loss" else None
        return Classification(classes, recipe.smoothing, weights)
    if recipe.guides:
        raise UserError(f"guide_classes goes by the one label of an image: leave it out for {recipe.task}")
    if recipe.balance_classes:
        raise UserError(f"balance_classes counts images by their one label: leave it out for {recipe.task}")
    if recipe.mixup or recipe.cutmix:
        raise UserError(f"mixup and cutmix mix images of one label each: leave them 0 for {recipe.task}")
    if recipe.task == "multilabel":
        return Multilabel(classes, recipe.smoothing)
    zero = recipe.reduce_zero_label and recipe.dataset != "coco"  # where it is the background
    return Segmentation(classes, recipe.smoothing, View(recipe.short_side), zero)


def _counts(splits: Splits) -> Tensor:
    counts = class_counts(splits.train, len(splits.class_names))
    assert counts is not None  # they have labels
    return counts


def best_key(recipe: Recipe, splits: Splits, metric: str) -> str:
    """The validation metric that says which epoch is best: the mean of the classes where these are uneven."""
    uneven = recipe.task == "classification" and is_uneven(_counts(splits))
    return "val_mean_class" if uneven else f"val_{metric}"


def _fit(
    trainer: Trainer,
    stop: StopRequest,
    changed: dict[str, list[Any]],
    groups: SuperClasses,
    introduce: Introduce | None,
    best: str,
    images: Images,
) -> None:
    """Train from where the run's folder stands to the end, and write the finished model, or that `best` by this key."""
    run, recipe = trainer.run, trainer.recipe
    with ExitStack() as stack:
        if first := rank() == 0:
            stack.enter_context(run.locked())
        trainer.resume()
        if first:
            if changed:
                run.note_change(changed, trainer.position.epoch + 1, trainer.position.batch)
            run.write_recipe(recipe)
            if groups:
                write_text(run.super_classes, dump_super_classes(groups))
            run.write_train_images(images)
            if trainer.initial_routers and trainer.saved is None:
                run.write_initial_routers({n: weight.float().numpy() for n, weight in trainer.initial_routers.items()})
            if introduce is not None:
                introduce()
        log = stack.enter_context(open_logs(run.path, recipe)) if first else None
        stop.at_once = False
        told = {block for row in trainer.rows for block in _collapsed(row)}
        while trainer.position.epoch < recipe.epochs:
            row = _one_epoch(trainer, stop)
            if log is not None:
                run.write_rows(trainer.rows)
                log(row)
                _report(row, trainer.task, recipe)
                told |= _warn(_collapsed(row), set() if row["epoch"] == recipe.epochs else told)
            if best and row[best] > max((before[best] for before in trainer.rows[:-1]), default=-1.0):
                trainer.save_model(run.checkpoints / "best")
            trainer.write_state()
        if first and trainer.rows:
            run.write_rows(trainer.rows)
        if not best or not _take_best(trainer, best, first):
            trainer.save_model(run.model)
        barrier()
        if first and not recipe.keep_states:
            shutil.rmtree(run.checkpoints, ignore_errors=True)


def _introduce(trainer: Trainer, splits: Splits, say: Callable[[str], None]) -> None:
    say(run_summary(trainer, splits))
    if not (sheet := trainer.run.path / "first_batch.jpg").exists():
        write_first_batch(splits, trainer.recipe, sheet, trainer.image_weights)


def _one_epoch(trainer: Trainer, stop: StopRequest) -> Row:
    """An epoch; what a step raises, apart from what the user can mend, becomes one line and a file."""
    try:
        return trainer.finish_epoch(stop)
    except (UserError, InterruptedRun):
        raise
    except Exception as error:
        if is_network_error(error):
            raise
        path = trainer.run.path / "error.txt"
        write_text(path, traceback.format_exc())
        saved = trainer.saved
        go_on = f"goes on from epoch {saved.epoch + 1}, batch {saved.batch}" if saved else "starts again"
        raise UserError(
            f"training failed in epoch {trainer.position.epoch + 1}, batch {trainer.position.batch + 1} "
            f"({type(error).__name__}: {first_line(error)}; see {path}): the same command {go_on}; "
            "--resume-changed allows another augmentation"
        ) from error


def _report(row: Row, task: Task, recipe: Recipe) -> None:
    metric = row[f"val_{task.metric}"]
    line = f"epoch {row['epoch']:3}/{recipe.epochs}  loss {row['loss']:.3f}  val {task.metric} {metric:.1f}"
    # On a terminal every epoch; in a log ten lines a run are enough.
    if sys.stderr.isatty() or row["epoch"] % max(1, recipe.epochs // 10) == 0 or row["epoch"] == recipe.epochs:
        tqdm.write(f"  {line}  {row['seconds']:.0f} s", file=sys.stderr)


def _take_best(trainer: Trainer, key: str, first: bool) -> bool:
    """Make the best epoch's model the finished one; says whether it is there."""
    kept = trainer.run.checkpoints / "best"
    if not all(all_gather((kept / "config.json").exists())):
        return False
    barrier()  # all have looked
    if first:
        row = max(trainer.rows, key=lambda row: row[key])
        tqdm.write(f"  kept: epoch {row['epoch']}, best by {key} {row[key]:.1f}", file=sys.stderr)
        row["kept"] = True
        trainer.run.write_rows(trainer.rows)
        os.replace(kept, trainer.run.model)
    return True


def _collapsed(row: Row) -> dict[str, float]:
    """The largest load of the routers that sent nearly all of an epoch to one expert, by block."""
    loads = {block: metrics["max_load"] for block, metrics in row["routing"].items()}
    return {block: load for block, load in loads.items() if load > 0.9}


def _warn(collapsed: dict[str, float], told: Collection[str]) -> set[str]:
    """Say once, and in the last epoch, which routers have collapsed; gives their blocks."""
    if new := {block: load for block, load in collapsed.items() if block not in told}:
        tqdm.write(
            f"  collapsed routers, by block the share of the epoch that one expert got: "
            f"{', '.join(f'{block} {load:.0%}' for block, load in new.items())}; a larger balance_weight spreads them",
            file=sys.stderr,
        )
    return set(new)
