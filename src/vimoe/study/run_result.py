"""What a study keeps of each run: the metrics of its test split, its cost, and how its MoE layers route."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimoe.analysis.counts import RoutingCounts, count_routing
from vimoe.analysis.patches import count_patch_routing
from vimoe.analysis.specialisation import specialisation
from vimoe.data.loaders import batches
from vimoe.data.splits import Splits
from vimoe.files import write_text
from vimoe.tasks.classification import evaluating
from vimoe.tasks.model import load_model
from vimoe.tasks.segmenter import Segmenter
from vimoe.tasks.windows import resized, view_size
from vimoe.training.fit import recipe_task
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.source import open_recipe_data
from vimoe.vit.blocks import moe_layers
from vimoe.vit.cost import cost
from vimoe.vit.recording import record_routing
from vimoe.vit.upcycle import get_config

Result = dict[str, Any]

FILE = "result.json"
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
    """All metrics of a finished run; the routing counts of the validation split are kept beside them.

    Returns:
        `recipe` (what differs from the defaults), `seed`, `metric` (the task's main metric), every metric of the task
        as `val_…` and `test_…`, `stored_params`, `activated_params`, `macs`, `train_images`, `seconds` of training,
        and of an MoE model `routing_degree` and `layers`: by block, its `Specialisation` and how many `experts_touched`
        an image's tokens are sent to.
    """
    device = pick_device(recipe.device)
    splits = open_recipe_data(recipe)
    task = recipe_task(recipe, splits)
    model = load_model(run.model, device)
    last = run.read_rows()[-1]
    test = task.evaluate(model, splits.test, device, recipe.workers)
    result: Result = {
        "recipe": _settings(recipe),
        "seed": recipe.seed,
        "metric": task.metric,
        **{key: value for key, value in last.items() if key.startswith("val_")},
        **{f"test_{key}": value for key, value in test.items()},
        **cost(model)._asdict(),
        "train_images": len(splits.train),
        "seconds": last["seconds"],
    }
    config = get_config(model)
    if config is not None:
        counts = _count(model, splits, recipe, device)
        counts.save(run.path / "routing" / "val.npz")
        touched = experts_touched(model, _val(splits, recipe), device, recipe.short_side)
        result["routing_degree"] = config.routing_degree
        result["layers"] = {
            str(layer): asdict(specialisation(counts.layer(layer), SHUFFLES)) | {"experts_touched": touched[layer]}
            for layer in counts.layers
        }
    return result


def experts_touched(
    model: nn.Module, images: Iterable[tuple[Tensor, Tensor]], device: str, short_side: int | None = None
) -> dict[int, float]:
    """How many experts of each layer an image's tokens are sent to, mean over images (the paper's Table 6)."""
    layers = moe_layers(model)
    sums, seen = dict.fromkeys(layers, 0.0), 0
    with evaluating(model):
        for batch, _ in images:
            height, width = batch.shape[-2:]
            with record_routing(model) as record:
                model(resized(batch, *view_size(height, width, short_side)).to(device))
            for number, ids in record.expert_ids.items():
                used = torch.zeros(len(batch), layers[number].experts.num_experts, dtype=torch.bool)
                used.scatter_(1, ids.reshape(len(batch), -1), True)
                sums[number] += int(used.sum())
            seen += len(batch)
    return {number: total / max(1, seen) for number, total in sums.items()}


def _count(model: nn.Module, splits: Splits, recipe: Recipe, device: str) -> RoutingCounts:
    if isinstance(model, Segmenter):
        return count_patch_routing(model, _val(splits, recipe), splits.class_names, device, recipe.short_side)[0]
    return count_routing(model, _val(splits, recipe), splits.class_names, device)


def _val(splits: Splits, recipe: Recipe) -> Iterable[tuple[Tensor, Tensor]]:
    """The validation split in batches; images of different sizes, which files with masks have, one by one."""
    alone = recipe.task == "segmentation" and splits.val.from_files
    return batches(splits.val, 1 if alone else 256, recipe.workers)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe is not the default; its place and its device are not settings."""
    plain, values = asdict(Recipe()), asdict(recipe)
    keys = (field.name for field in fields(Recipe) if field.name not in ("output", "device"))
    return {key: values[key] for key in keys if values[key] != plain[key]}
