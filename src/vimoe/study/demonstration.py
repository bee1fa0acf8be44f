"""The demo: a dense ViT, its control, the ViMoE, and the ViMoE pruned to the layers that are worth it."""

import sys
from dataclasses import replace
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
from vimoe.study.prune_run import prune_run
from vimoe.study.recovery import recovery
from vimoe.tasks.model import load_model
from vimoe.training.fit import train
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.source import open_recipe_data
from vimoe.vit.cost import cost

NUM_EXPERTS = 8


class Course(NamedTuple):
    """What the demo of a task does.

    Attributes:
        recipe: The file of the dense model's recipe, in this folder.
        title: Of the report.
        learns: What the dense model learns.
        last: How many of the last blocks become MoE layers: all of them.
        tuning: Epochs of fine-tuning.
        recovery: Epochs of recovery after pruning.
    """

    recipe: str
    title: str
    learns: str
    last: int
    tuning: int
    recovery: int


COURSES = {
    "classification": Course(
        "demo_digits.yaml", "A Mixture-of-Experts from a dense ViT: digits", "digits", last=12, tuning=12, recovery=4
    ),
    "segmentation": Course(
        "demo_scenes.yaml",
        "A Mixture-of-Experts from a dense ViT: scenes of digits",
        "to label every pixel of scenes of digits",
        last=6,
        tuning=4,
        recovery=2,
    ),
}
NOTE = (
    "Changes are against the dense model above with as many steps. Intervals are over test images; this is one seed, "
    "and another one would move every row. Seconds are of training since the dense model (for that one, its own)."
)


class Stages(NamedTuple):
    """The recipes of the demo; the second and the third start from the model that the first one leaves."""

    dense: Recipe
    control: Recipe
    vimoe: Recipe


def demo_recipes(folder: Path, seed: int, device: str, task: str = "classification") -> Stages:
    """What `vimoe demo` trains before it prunes: the control goes on for as many steps as the ViMoE is fine-tuned."""
    course = COURSES[task]
    with as_file(files("vimoe.study") / course.recipe) as path:
        dense = replace(load_recipe(path), seed=seed, device=device, output=str(folder / "dense"))
    # The dense model knows its images by heart by now: augmented ones give the routers something to learn from.
    tuning = replace(
        dense,
        augment=True,
        smoothing=0.0,
        warmup_epochs=0.5,
        epochs=course.tuning,
        lr=dense.lr / 2,
        initial_checkpoint=str(folder / "dense" / "model"),
    )
    return Stages(
        dense=dense,
        control=replace(tuning, output=str(folder / "control")),
        vimoe=replace(tuning, output=str(folder / "vimoe"), last=course.last, num_experts=NUM_EXPERTS),
    )


def run_demo(folder: Path, seed: int, device: str, task: str = "classification") -> Path:
    """Run all stages, or what is left of them, print the comparison and write the report.

    The control recovers too: every comparison is at equal steps.

    Returns:
        The report's path.

    Raises:
        UserError: The folder holds something else, or another process works in it.
    """
    home, made_by = RunFolder(folder), {"verb": "demo", "task": task, "seed": seed}
    home.check_inputs(made_by)
    with home.locked():
        home.write_inputs(made_by)
        return _all_stages(folder, seed, device, task)


def _all_stages(folder: Path, seed: int, device: str, task: str) -> Path:
    # One thread: a model this small only waits for others, and the figures do not depend on the number of cores.
    torch.set_num_threads(1)
    course, stages, device = COURSES[task], demo_recipes(folder, seed, device, task), pick_device(device)
    splits = open_recipe_data(stages.dense)
    _say(f"1/5  a dense ViT learns {course.learns}")
    dense = train(stages.dense)
    _say("2/5  its copy becomes a Mixture-of-Experts in all blocks, and is fine-tuned")
    vimoe = train(stages.vimoe)
    _say("3/5  the control: the dense model goes on for the same number of steps")
    control = train(stages.control)
    _say("4/5  what is each layer worth? Layers that matter stay, the others become plain FFNs")
    analysis, plan = analyze_run(vimoe.path, device=device)
    _say(decision_table(analysis, plan).text())
    _say("5/5  the pruned model recovers, and the control is trained as long")
    pruned = RunFolder(prune_run(vimoe.path, recover=course.recovery, output=folder / "pruned", device=device).output)
    again = folder / "control_recovered"
    recovered = train(recovery(stages.control, control.model, course.recovery, again, device))
    # Name, the runs that trained it since the dense model, and the model that it is compared with.
    compared: list[tuple[str, list[RunFolder], RunFolder | None]] = [
        ("dense", [dense], None),
        ("dense, as many steps as the ViMoE", [control], None),
        ("ViMoE, all layers", [vimoe], control),
        ("dense, as many steps as the pruned", [control, recovered], None),
        ("ViMoE, pruned and recovered", [vimoe, pruned], recovered),
    ]
    scores = {runs[-1].path: _scores(runs[-1], splits.test, splits, device) for _, runs, _ in compared}
    variants = [
        Variant(
            name=name,
            score=mean_score(scores[runs[-1].path]),
            cost=cost(load_model(runs[-1].model)),
            lost=None if other is None else mean_loss(scores[other.path], scores[runs[-1].path]),
            training=sum(run.read_rows()[-1]["seconds"] for run in runs),
        )
        for name, runs, other in compared
    ]
    metric, images = analysis.metric, len(splits.test)
    table = comparison_table(variants, metric, images, NOTE)
    sentence = comparison_sentence(variants[4], variants[3], metric, images)
    runs = {"dense": dense, "dense, trained on": control, "ViMoE, pruned": pruned, "ViMoE, all layers": vimoe}
    command = f"vimoe demo --seed {seed}" + ("" if task == "classification" else f" --task {task}")
    found = analysis_report(vimoe.path, command)
    report = replace(
        found,
        title=course.title,
        conclusion=sentence,
        tables=[table, *found.tables],
        rows={name: run.read_rows() for name, run in runs.items()},
        recipes={name: (run.path / "recipe.yaml").read_text() for name, run in runs.items()},
        control=("dense, as many steps", mean_score(_scores(control, splits.val, splits, device))),
    )
    path = write_page(report, folder / "report.html")
    print(f"\n{table.text()}\n\n{sentence}\nThe report lies in {path}")
    return path


def _scores(run: RunFolder, images: Images, splits: Splits, device: str) -> Tensor:
    """`[N]` share of each image that a finished run's model has right."""
    model = load_model(run.model, device)
    seen = held_out(model, images, len(splits.class_names))
    return image_scores(model, seen.batches(), seen.score, device)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
