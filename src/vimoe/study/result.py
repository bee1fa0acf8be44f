"""What a study keeps of each run: the figures of its test split, its cost, and how its MoE layers route."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from vimoe.analysis.counts import count_routing
from vimoe.analysis.specialisation import specialisation
from vimoe.data.loading import batches
from vimoe.tasks.classification import Classification
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run import RunFolder, write_text
from vimoe.training.source import open_recipe_data
from vimoe.training.train import train
from vimoe.vit.checkpoint import load
from vimoe.vit.cost import cost
from vimoe.vit.upcycle import get_config

Result = dict[str, Any]

FILE = "result.json"
# Shuffled labels behind each layer's p-value.
SHUFFLES = 199


def run_to_result(recipe: Recipe) -> Result:
    """Train a run to its end, look at its test split once, and note down what came of it.

    Raises:
        UserError: Something in the recipe cannot be done.
        InterruptedRun: The process was asked to stop; the state is written.
    """
    run = train(recipe)
    result = read_result(run.path)
    if result is None:
        result = measure(run, recipe)
        write_text(run.path / FILE, json.dumps(result, indent=1) + "\n")
    # Of no use to a finished run, and several times the size of its model.
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    return result


def read_result(folder: Path) -> Result | None:
    """The result of a run folder, None where there is none yet."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else None


def measure(run: RunFolder, recipe: Recipe) -> Result:
    """All figures of a finished run; the routing counts of the validation split are kept beside them.

    Returns:
        `recipe` (what differs from the defaults), `seed`, `metric` (the task's main figure), every figure of the task
        as `val_…` and `test_…`, `stored_params`, `activated_params`, `macs`, `seconds` of training, and of an MoE model
        `routing_degree` and `layers`: by block, its normalised mutual information and the rest of `Specialisation`.
    """
    device = pick_device(recipe.device)
    splits = open_recipe_data(recipe)
    task = Classification(len(splits.class_names), recipe.smoothing)
    model = load(run.model, device)
    last = run.read_rows()[-1]
    test = task.evaluate(model, splits.test, device, recipe.workers)
    result: Result = {
        "recipe": _settings(recipe),
        "seed": recipe.seed,
        "metric": task.metric,
        **{key: value for key, value in last.items() if key.startswith("val_")},
        **{f"test_{key}": value for key, value in test.items()},
        **cost(model)._asdict(),
        "train_pictures": len(splits.train),
        "seconds": last["seconds"],
    }
    config = get_config(model)
    if config is not None:
        labelled = batches(splits.val, workers=recipe.workers)
        counts = count_routing(model, labelled, splits.class_names, device)
        counts.save(run.path / "routing" / "val.npz")
        result["routing_degree"] = config.routing_degree
        measures = {layer: specialisation(counts.layer(layer), SHUFFLES) for layer in counts.layers}
        result["layers"] = {str(layer): asdict(measure) for layer, measure in measures.items()}
    return result


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe is not the default, `model_args` and all; its place and its device are not settings."""
    plain = Recipe()
    values = asdict(recipe)
    return {
        field.name: values[field.name]
        for field in fields(Recipe)
        if field.name not in ("output", "device") and values[field.name] != getattr(plain, field.name)
    }
