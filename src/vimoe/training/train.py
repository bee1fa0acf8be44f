"""From a recipe to a trained model: data, model, loop, run folder."""

from __future__ import annotations

from pathlib import Path

from vimoe.data.splits import Splits
from vimoe.distributed import process_group
from vimoe.errors import UserError
from vimoe.tasks.classification import Classification
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.task import Task
from vimoe.tasks.windows import View
from vimoe.training.build import build_model
from vimoe.training.loop import fit
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.source import open_recipe_data


def train(recipe: Recipe) -> RunFolder:
    """Run a recipe to its end, or from where its folder stands; every process of a `torchrun` calls it.

    Raises:
        UserError: Something in the recipe cannot be done.
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
