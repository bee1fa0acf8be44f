"""What a study keeps of each run: the metrics of its test split, its cost, and how its MoE layers route."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimoe.analysis.ablation_scores import share_of_right_labels
from vimoe.analysis.behaviour import count_routing
from vimoe.analysis.held_out import held_out
from vimoe.analysis.specialisation import specialisation
from vimoe.data.images import Images
from vimoe.data.splits import Splits
from vimoe.files import write_arrays, write_text
from vimoe.study.effort import training_steps
from vimoe.tasks.classification import Classification
from vimoe.tasks.model import load_model
from vimoe.training.feature_cache import MEMORY, held_out_features
from vimoe.training.fit import recipe_task
from vimoe.training.optimizer import first_trained_block
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import RunFolder, kept_row
from vimoe.training.source import open_recipe_data
from vimoe.vit.cost import cost
from vimoe.vit.trunk import tail
from vimoe.vit.upcycle import get_config

Result = dict[str, Any]

FILE, RIGHT_FILE = "result.json", "test_right.npz"
# Shuffled tables behind each layer's chance level.
SHUFFLES = 199


def keep_result(run: RunFolder, result: Result) -> Result:
    """Remove what is of no use to a finished run, then write its result, so that no run with one is left uncleared."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)  # several times the size of its model
    write_text(run.path / FILE, json.dumps(result, indent=1) + "\n")
    return result


def read_result(folder: Path) -> Result | None:
    """The result of a run folder, None where there is none yet or none that can be read."""
    try:
        return json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return None


def measure(run: RunFolder, recipe: Recipe) -> Result:
    """All metrics of a finished run.

    The routing counts of the validation split, and of a classifier which test images it has right (`right`, `[N]`
    bool), are written into the run's folder; broken test images are left out, counted (`test_images` is how many were
    read) and listed there.

    Returns:
        `seed`, `metric` (the task's main metric), every metric of the task as `val_…` and `test_…`, `stored_params`,
        `activated_params`, `macs`, `trained_params`, the `steps` of training with the `shown_images` and `seconds` that
        they took, and of an MoE model `routing_degree` and `layers`: by block, its `Specialisation` and how many
        `experts_touched` an image's choices fall on.

    Raises UserError if more test images are broken than the recipe's `max_broken` allows.
    """
    device = pick_device(recipe.device)
    splits = open_recipe_data(recipe)
    task = recipe_task(recipe, splits)
    model = load_model(run.model, device)
    running, seen = _running(model, splits, recipe, device)
    images, rows = seen(splits.test), run.read_rows()
    last = rows[-1]
    broken, right = list[str](), list[Tensor]()

    def watch(outputs: Tensor, targets: Tensor) -> None:
        if isinstance(task, Classification):
            right.append(share_of_right_labels(outputs, targets))

    try:
        test = task.evaluate(running, images, device, recipe.workers, broken.append, recipe.max_broken, watch)
    finally:
        run.write_skipped(broken, "test")
    if right:
        write_arrays(run.path / RIGHT_FILE, right=torch.cat(right).bool().numpy())
    steps = training_steps(recipe, len(splits.train))
    result: Result = {
        "seed": recipe.seed,
        "metric": task.metric,
        **{key: value for key, value in kept_row(rows).items() if key.startswith("val_")},
        **{f"test_{key}": value for key, value in test.items()},
        **cost(model)._asdict(),
        "trained_params": last.get("trained_params", 0),
        "steps": steps,
        "shown_images": steps * recipe.accumulate * recipe.batch_size,
        "seconds": last["seconds"],
    }
    config = get_config(model)
    if config is not None and config.router != "soft":  # which makes no choices to count
        names = splits.class_names
        val = held_out(model, seen(splits.val), len(names), recipe.workers, recipe.short_side, 256)
        routing = count_routing(model, val, device, running)
        counts = replace(routing.counts(names), super_classes=splits.super_classes)
        counts.save(run.path / "routing" / "val.npz")
        touched = routing.experts_touched()
        result["routing_degree"] = config.routing_degree
        result["layers"] = {
            str(layer): asdict(specialisation(routing.observations(layer, len(names)), SHUFFLES, bool(config.guide)))
            | {"experts_touched": touched[layer]}
            for layer in routing.layers
        }
    return result


def _running(
    model: nn.Module, splits: Splits, recipe: Recipe, device: str
) -> tuple[nn.Module, Callable[[Images], Images]]:
    """The part of the model that runs, and what gives images the form that it takes: tokens where these are kept."""
    if recipe.cache_features in ("", MEMORY):  # what memory holds is no other run's
        return model, lambda images: images
    cut = first_trained_block(model, recipe)
    return tail(model, cut), held_out_features(splits, model, cut, recipe, device)
