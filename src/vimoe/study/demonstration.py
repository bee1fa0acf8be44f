"""The demo: a dense ViT, its control, the ViMoE, and the ViMoE pruned to the layers that are worth it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vimoe.analysis.ablation_scores import image_scores
from vimoe.analysis.analyze_run import analyze_run
from vimoe.analysis.held_out import held_out
from vimoe.analysis.paired import mean_loss, mean_score
from vimoe.data.images import Images
from vimoe.data.splits import Splits
from vimoe.report.comparison import Variant, comparison_sentence, comparison_table
from vimoe.report.page import write_page
from vimoe.report.results import decision_table
from vimoe.report.run_report import analysis_report
from vimoe.tasks.model import load_model
from vimoe.training.fit import recipe_task, train
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.source import open_recipe_data
from vimoe.vit.cost import cost
from vimoe.vit.plan import Plan
from vimoe.vit.pruning import prune

NUM_EXPERTS = 8


class Course(NamedTuple):
    """What the demo of a task does.

    Attributes:
        recipe: The file of the dense model's recipe, in this folder.
        title: Of the report.
        last: How many of the last blocks become MoE layers: all of them.
        tuning: Epochs of fine-tuning.
        recovery: Epochs of recovery after pruning.
    """

    recipe: str
    title: str
    last: int
    tuning: int
    recovery: int


COURSES = {
    "classification": Course("demo_digits.yaml", "A Mixture-of-Experts from a dense ViT: digits", 12, 12, 4),
    "segmentation": Course("demo_scenes.yaml", "A Mixture-of-Experts from a dense ViT: scenes of digits", 6, 4, 2),
}


@dataclass(frozen=True)
class Stages:
    """The recipes of the demo; each one starts from the model that another leaves."""

    dense: Recipe
    control: Recipe
    control_recovered: Recipe
    vimoe: Recipe
    pruned: Recipe


# Below the comparison.
NOTE = (
    "Changes are against the dense model above with as many steps. Intervals are over test images; this is one seed, "
    "and another one would move every row. Seconds are of training since the dense model (for that one, its own)."
)


def demo_recipes(folder: Path, seed: int, device: str, task: str = "classification") -> Stages:
    """What `vimoe demo` runs.

    The control is the dense model trained on for as many steps as the ViMoE is fine-tuned, and once more for as
    many as the pruned model recovers: every comparison is at equal steps.
    """
    course = COURSES[task]
    with as_file(files("vimoe.study") / course.recipe) as path:
        dense = replace(load_recipe(path), seed=seed, device=device, output=str(folder / "dense"))
    start = str(folder / "dense" / "model")
    # The dense model knows its images by heart by now: augmented ones give the routers something to learn from.
    augmented = replace(dense, augment=True, smoothing=0.0, warmup_epochs=0.5)
    tuning = replace(augmented, epochs=course.tuning, lr=dense.lr / 2, initial_checkpoint=start)
    recovery = replace(augmented, epochs=course.recovery, lr=dense.lr / 4)
    return Stages(
        dense=dense,
        control=replace(tuning, output=str(folder / "control")),
        control_recovered=replace(
            recovery,
            output=str(folder / "control_recovered"),
            initial_checkpoint=str(folder / "control" / "model"),
        ),
        vimoe=replace(tuning, output=str(folder / "vimoe"), last=course.last, num_experts=NUM_EXPERTS),
        pruned=replace(
            recovery, output=str(folder / "pruned"), initial_checkpoint=str(folder / "vimoe" / "pruned_model")
        ),
    )


def run_demo(folder: Path, seed: int, device: str, task: str = "classification") -> Path:
    """Run all stages, or what is left of them, print the comparison and write the report.

    Returns:
        The report's path.
    """
    # One thread: a model this small only waits for others, and the figures do not depend on the number of cores.
    torch.set_num_threads(1)
    stages = demo_recipes(folder, seed, device, task)
    splits = open_recipe_data(stages.dense)
    what = "digits" if task == "classification" else "to label every pixel of scenes of digits"
    _say(f"1/5  a dense ViT learns {what}")
    dense = train(stages.dense)
    _say("2/5  its copy becomes a Mixture-of-Experts in all blocks, and is fine-tuned")
    vimoe = train(stages.vimoe)
    _say("3/5  the control: the dense model goes on for the same number of steps")
    control = train(stages.control)
    _say("4/5  what is each layer worth? Layers that matter stay, the others become plain FFNs")
    analysis, plan = analyze_run(vimoe.path, device=device)
    _say(decision_table(analysis, plan).text())
    _prune(vimoe, plan, stages.vimoe, splits)
    _say("5/5  the pruned model recovers, and the control is trained as long")
    pruned = train(stages.pruned)
    recovered = train(stages.control_recovered)
    device = pick_device(device)
    # Name, run, the recipes that trained it since the dense model, and the run that it is compared with.
    compared: list[tuple[str, RunFolder, list[Recipe], RunFolder | None]] = [
        ("dense", dense, [stages.dense], None),
        ("dense, as many steps as the ViMoE", control, [stages.control], None),
        ("ViMoE, all layers", vimoe, [stages.vimoe], control),
        ("dense, as many steps as the pruned", recovered, [stages.control, stages.control_recovered], None),
        ("ViMoE, pruned and recovered", pruned, [stages.vimoe, stages.pruned], recovered),
    ]
    scores = {run.path: _scores(run, splits.test, splits, device) for _, run, *_ in compared}
    variants = [
        Variant(
            name=name,
            score=mean_score(scores[run.path]),
            cost=cost(load_model(run.model)),
            lost=None if other is None else mean_loss(scores[other.path], scores[run.path]),
            training=sum(RunFolder(Path(recipe.output)).read_rows()[-1]["seconds"] for recipe in recipes),
        )
        for name, run, recipes, other in compared
    ]
    metric, images = analysis.metric, len(splits.test)
    table = comparison_table(variants, metric, images, NOTE)
    sentence = comparison_sentence(variants[4], variants[3], metric, images)
    runs = {"dense": dense, "dense, trained on": control, "ViMoE, pruned": pruned, "ViMoE, all layers": vimoe}
    command = f"vimoe demo --seed {seed}" + ("" if task == "classification" else f" --task {task}")
    found = analysis_report(vimoe.path, command)
    report = replace(
        found,
        title=COURSES[task].title,
        conclusion=sentence,
        tables=[table, *found.tables],
        rows={name: run.read_rows() for name, run in runs.items()},
        recipes={name: (run.path / "recipe.yaml").read_text() for name, run in runs.items()},
        control=("dense, as many steps", mean_score(_scores(control, splits.val, splits, device))),
    )
    path = write_page(report, folder / "report.html")
    print(f"\n{table.text()}\n\n{sentence}\nThe report lies in {path}")
    return path


def _prune(run: RunFolder, plan: Plan, recipe: Recipe, splits: Splits) -> None:
    recipe_task(recipe, splits).save(prune(load_model(run.model), plan), run.path / "pruned_model", splits)


def _scores(run: RunFolder, images: Images, splits: Splits, device: str) -> Tensor:
    """`[N]` share of each image that a finished run's model has right."""
    model = load_model(run.model, device)
    seen = held_out(model, images, len(splits.class_names))
    return image_scores(model, seen.batches(), seen.score, device)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
