"""The product's whole story as four runs: dense, its control, the ViMoE, and the ViMoE pruned to its useful layers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import torch

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.of_run import analyse_run
from vimoe.analysis.specialisation import Specialisation
from vimoe.data.registry import open_dataset
from vimoe.report.arm import Arm, conclusion, standard_error
from vimoe.report.page import Report, write_page
from vimoe.report.tables import arm_table
from vimoe.tasks.classification import Classification
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.training.run import RunFolder
from vimoe.training.train import train
from vimoe.vit.checkpoint import load, save
from vimoe.vit.cost import cost
from vimoe.vit.plan import Plan
from vimoe.vit.prune import prune

FINE_TUNING_EPOCHS = 12
RECOVERY_EPOCHS = 4
NUM_EXPERTS = 8


@dataclass(frozen=True)
class Stages:
    """The recipes of the demo; each one starts from the model that another leaves."""

    dense: Recipe
    control: Recipe
    control_recovered: Recipe
    vimoe: Recipe
    pruned: Recipe


def demo_recipes(folder: Path, seed: int, device: str) -> Stages:
    """What `vimoe demo` runs.

    The control is the dense model trained on for as many steps as the ViMoE is fine-tuned, and once more for as
    many as the pruned model recovers: every comparison is at equal steps.
    """
    with as_file(files("vimoe.study") / "demo.yaml") as path:
        dense = replace(load_recipe(path), seed=seed, device=device, output=str(folder / "dense"))
    start = str(folder / "dense" / "model")
    # The dense model knows its pictures by heart by now: varied ones give the routers something to learn from.
    varied = replace(dense, augment=True, smoothing=0.0)
    tuning = replace(varied, epochs=FINE_TUNING_EPOCHS, lr=dense.lr / 2, initial_checkpoint=start)
    recovery = replace(varied, epochs=RECOVERY_EPOCHS, lr=dense.lr / 4)
    return Stages(
        dense=dense,
        control=replace(tuning, output=str(folder / "control")),
        control_recovered=replace(
            recovery,
            output=str(folder / "control_recovered"),
            initial_checkpoint=str(folder / "control" / "model"),
        ),
        vimoe=replace(tuning, output=str(folder / "vimoe"), last=12, num_experts=NUM_EXPERTS),
        pruned=replace(
            recovery, output=str(folder / "pruned"), initial_checkpoint=str(folder / "vimoe" / "pruned_model")
        ),
    )


def run_demo(folder: Path, seed: int, device: str) -> Path:
    """Run all stages, or what is left of them, print the comparison and write the report.

    Returns:
        The report's path.
    """
    # One thread: a model this small only waits for others, and the figures do not depend on the number of cores.
    torch.set_num_threads(1)
    stages = demo_recipes(folder, seed, device)
    _say("1/5  a dense ViT learns digits")
    dense = train(stages.dense)
    _say("2/5  its copy becomes a Mixture-of-Experts in all blocks, and is fine-tuned")
    vimoe = train(stages.vimoe)
    _say("3/5  the control: the dense model goes on for the same number of steps")
    control = train(stages.control)
    _say("4/5  what is each layer worth? Layers that matter stay, the others become plain FFNs")
    counts, measures, plan = look_and_choose(vimoe, device)
    for part in plan.layers:
        _say(f"     block {part.layer:2}  {'prune' if part.pruned else 'keep '}  {part.reason}")
    _prune(vimoe, plan)
    _say("5/5  the pruned model recovers, and the control keeps step")
    pruned = train(stages.pruned)
    recovered = train(stages.control_recovered)
    arms = [
        _measure("dense", dense, [stages.dense]),
        _measure("dense, as many steps as the ViMoE", control, [stages.control]),
        _measure("ViMoE, all layers", vimoe, [stages.vimoe]),
        _measure("dense, as many steps as the pruned", recovered, [stages.control, stages.control_recovered]),
        _measure("ViMoE, pruned and recovered", pruned, [stages.vimoe, stages.pruned]),
    ]
    sentence = conclusion(arms[4], arms[3])
    runs = {"dense": dense, "dense, trained on": control, "ViMoE, all layers": vimoe, "ViMoE, pruned": pruned}
    report = Report(
        title="A Mixture-of-Experts from a dense ViT: digits",
        conclusion=sentence,
        arms=arms,
        counts=counts,
        measures=measures,
        plan=plan,
        rows={name: run.read_rows() for name, run in runs.items()},
        recipes={name: (run.path / "recipe.yaml").read_text() for name, run in runs.items()},
        command=f"vimoe demo --seed {seed}",
    )
    path = write_page(report, folder / "report.html")
    print(f"\n{arm_table(arms)}\n\n{sentence}\nThe report lies in {path}")
    return path


def look_and_choose(run: RunFolder, device: str) -> tuple[RoutingCounts, dict[int, Specialisation], Plan]:
    """Analyse a finished run on its validation split and plan what to keep; what was found is kept in its folder."""
    analysis, plan = analyse_run(run.path, device=device)
    counts = RoutingCounts.load(run.path / "routing" / "val.npz")
    return counts, {layer.layer: layer.specialisation for layer in analysis.layers}, plan


def _prune(run: RunFolder, plan: Plan) -> None:
    save(prune(load(run.model), plan), run.path / "pruned_model")


def _measure(name: str, run: RunFolder, recipes: list[Recipe]) -> Arm:
    """Test accuracy and cost of a finished run; its seconds are of all training since the dense model."""
    model = load(run.model)
    splits = open_dataset(recipes[-1].dataset)
    figures = Classification(len(splits.class_names)).evaluate(model, splits.test, "cpu")
    seconds = sum(RunFolder(Path(recipe.output)).read_rows()[-1]["seconds"] for recipe in recipes)
    top1, pictures = figures["top1"], int(figures["pictures"])
    return Arm(name, top1, standard_error(top1, pictures), pictures, cost(model), seconds)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
