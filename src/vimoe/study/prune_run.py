"""Carrying out a plan on a finished run: surgery, recovery, and the evidence of what it did."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from vimoe.analysis.ablation_scores import image_scores
from vimoe.analysis.analyze_run import finished_run, run_images
from vimoe.analysis.held_out import HeldOut, held_out
from vimoe.analysis.paired import mean_loss, mean_score
from vimoe.data.splits import Splits
from vimoe.errors import UserError
from vimoe.report.comparison import Evidence, Variant
from vimoe.study.compare_runs import dense_control
from vimoe.study.recovery import RECOVERY, recovery, recovery_epochs
from vimoe.study.speed import compare_speed
from vimoe.tasks.model import load_model
from vimoe.training.fit import recipe_task, train
from vimoe.training.parallel import pick_device
from vimoe.training.run_folder import RunFolder
from vimoe.vit.cost import cost
from vimoe.vit.plan import Plan, blocks
from vimoe.vit.pruning import prune
from vimoe.vit.upcycle import get_config


def prune_run(
    path: Path,
    plan_path: Path | None = None,
    recover: float | None = None,
    output: Path | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> Evidence:
    """Prune a finished run into a folder of its own; the run itself is not touched.

    The folder becomes a run folder: `start/` is the model right after the surgery, `model/` the finished one,
    `plan.json` what was carried out, `pruning.json` the evidence. The same command goes on where it was stopped; a
    folder that anything else made is refused before a byte is written.

    What is reported is measured on test images, or, if these made the plan, on validation images. A finished dense run
    of the same recipe beside the run (see `dense_control`) is measured as well.

    Args:
        plan_path: The plan; by default the run's own `plan.json`.
        recover: Epochs of recovery training with the run's own recipe; below 1 a share of the run's epochs, 0 for
            none. By default a quarter of them, and none where the plan keeps everything.
        output: The new folder; by default beside the run, its name with `-pruned`.
        data_dir: Where the images lie now, if they were moved.

    Raises UserError if the run is not finished, the plan does not fit it, the folder holds something else, or another
    process works in it.
    """
    run, recipe = finished_run(path)
    plan = Plan.load(plan_path or path / "plan.json")
    new = RunFolder(output or path.resolve().with_name(f"{path.resolve().name}-pruned"))
    if new.path.resolve() == path.resolve():
        raise UserError(f"{new.path} is the run itself: choose another --output")
    device = pick_device(device)
    before = load_model(run.model, device)
    after = prune(load_model(run.model, device), plan)
    if recover is None:
        config = get_config(before)
        recover = RECOVERY if config and plan.changes(config) else 0
    epochs = recovery_epochs(recipe, recover)
    inputs = _inputs(run, plan, epochs)
    new.check_inputs(inputs)
    recipe = replace(recipe, data_dir=data_dir or recipe.data_dir)
    splits = run_images(run, recipe)
    start = new.path / "start" if epochs else new.model
    with new.locked():
        new.check_inputs(inputs)  # another process may have been faster
        new.write_inputs(inputs)
        say(_what(plan) + ("" if epochs else "; no recovery"))
        if not (start / "config.json").exists():  # else a run that was stopped goes on from its own start
            recipe_task(recipe, splits).save(after, start, splits)
        plan.save(new.path / "plan.json")
        if not epochs:  # training writes it otherwise; it says whose images these are
            new.write_recipe(recovery(recipe, run.model, recipe.epochs, new.path, device))
    models = {"before": before, "right after": after}
    if control := dense_control(path, recipe):
        say(f"the dense control is the run in {control.path}")
        models = {"before": before, "dense control": load_model(control.model, device), "right after": after}
    if epochs:
        say(f"recovery: {epochs} of the recipe's {recipe.epochs} epochs")
        models["recovered"] = load_model(train(recovery(recipe, start, epochs, new.path, device)).model, device)
    split, decided = reporting_split(splits, plan.split)
    if decided:
        say(f"the {split} images made the plan as well and there are no others: its losses look too small")
    broken: dict[str, None] = {}  # in order, and each once however often it is met
    images = getattr(splits, split)
    sized = recipe.workers, recipe.short_side
    seen = held_out(before, images, len(splits.class_names), *sized, on_broken=broken.setdefault)
    states, scored = _states(models, seen, splits.form.input_size, device)
    for line in broken:
        say(line)
    evidence = Evidence(states, seen.metric, split, scored, decided, epochs, new.path)
    evidence.save(new.path / "pruning.json")
    return evidence


def reporting_split(splits: Splits, decided: str) -> tuple[str, bool]:
    """The split to report on, and whether its images made the plan (on split `decided`) as well: no others are left."""
    made = getattr(splits, decided, None)  # a data set without a test split has its validation images in both places
    found = next((split for split in ("test", "val") if getattr(splits, split) is not made), "")
    return found or "test", not found


def _inputs(run: RunFolder, plan: Plan, epochs: int) -> dict[str, Any]:
    """What the pruned model depends on, named as a refusal names it."""
    with (run.model / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    layers = [
        {"layer": x.layer, "experts": list(x.experts), "load": x.load and list(x.load)}
        | ({"merge": True} if x.merge else {})  # folders from before do not say it
        for x in plan.layers
    ]
    return {"run": digest, "plan": layers, "number of recovery epochs": epochs}


def _states(
    models: dict[str, nn.Module], seen: HeldOut, image_shape: tuple[int, int, int], device: str
) -> tuple[tuple[Variant, ...], int]:
    scores = {name: image_scores(model, seen.batches(), seen.score, device) for name, model in models.items()}
    speeds = compare_speed(list(models.values()), image_shape, device)
    states = []
    for (name, model), speed in zip(models.items(), speeds, strict=True):
        lost = None if name == "before" else mean_loss(scores["before"], scores[name])
        states.append(Variant(name, mean_score(scores[name]), cost(model), lost, speed))
    return tuple(states), len(scores["before"])


def _what(plan: Plan) -> str:
    gone = blocks(part.layer for part in plan.layers if part.pruned)
    kept = [f"{part.layer} ({len(part.experts)} experts)" for part in plan.layers if not part.pruned]
    return f"surgery: plain FFNs in {gone}; MoE layers stay in {', '.join(kept) or 'no block'}"
