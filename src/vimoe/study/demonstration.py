"""The demo: a study of one seed (a dense ViT, its controls, the ViMoE), its plan carried out, and a page about it."""

import os
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
from vimoe.errors import UserError
from vimoe.report.comparison import Variant, comparison_sentence, comparison_table
from vimoe.report.page import write_page
from vimoe.report.results import decision_table
from vimoe.report.run_report import analysis_report
from vimoe.study.execution import execute
from vimoe.study.grid import StudyRun, list_runs
from vimoe.study.prune_run import prune_run
from vimoe.study.recovery import recovery
from vimoe.study.study_file import Study, read_study
from vimoe.tasks.model import load_model
from vimoe.training.fit import train
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.source import open_recipe_data
from vimoe.vit.cost import cost


class Course(NamedTuple):
    """What the demo of a task does."""

    study: str  # the study file, in this folder, with a start, and a dense, a wide and an MoE variant
    title: str  # of the report
    learns: str  # what the models learn
    recovery: int  # epochs of recovery after pruning, of which the control gets as many; 0 where little is pruned


COURSES = {
    "classification": Course(
        "demo_glyphs.yaml", "A Mixture-of-Experts from a dense ViT: glyphs", "letters and digits of many scripts", 0
    ),
    "segmentation": Course(
        "demo_scenes.yaml",
        "A Mixture-of-Experts from a dense ViT: scenes of digits",
        "to label every pixel of scenes of digits",
        2,
    ),
}
NOTE = (
    "Changes are against the dense model above with as many steps. Intervals are over test images; this is one seed, "
    "and another one would move every row. Seconds are of training since the first dense model (for that one, its own)."
)


def demo_study(folder: Path, seed: int, device: str, task: str = "classification") -> Study:
    """What `vimoe demo` trains before it prunes: all variants start from one dense model and take as many steps."""
    with as_file(files("vimoe.study") / COURSES[task].study) as path:
        return replace(read_study(path, folder, device=device), seeds=(seed,))


def run_demo(folder: Path, seed: int, device: str, task: str = "classification") -> Path:
    """Run all stages, or what is left of them, print the comparison and write the report.

    Every comparison is at equal steps.

    Returns:
        The report's path.

    Raises UserError if a run failed.
    """
    # One thread: a model this small only waits for others, and the figures do not depend on the number of cores.
    torch.set_num_threads(1)
    course, device = COURSES[task], pick_device(device)
    study = demo_study(folder, seed, device, task)
    list_runs(study)  # a wrong seed is told before a folder is made
    _say(f"1/3  a dense ViT learns {course.learns}; copies of it go on: dense, widened, and as a Mixture-of-Experts")
    progress = execute(study, jobs=min(3, os.cpu_count() or 1))
    if progress.failures:
        raise UserError(progress.failure_line())
    start, dense, wide, vimoe = (_of(progress.runs, name) for name in ("start", "dense", "wide", "moe"))
    _say("2/3  what is each layer worth? Layers that matter stay, the others become plain FFNs")
    analysis, plan = analyze_run(vimoe.path, device=device)
    _say(decision_table(analysis, plan).text())
    _say("3/3  the plan is carried out, and all models meet on the test images")
    pruned = RunFolder(prune_run(vimoe.path, recover=course.recovery, output=folder / "pruned", device=device).output)
    recipe = load_recipe(dense.path / "recipe.yaml")
    # Name, the runs that trained it since the first dense model, and the model that it is compared with.
    compared: list[tuple[str, list[RunFolder], RunFolder | None]] = [
        ("dense", [start], None),
        ("dense, as many steps as the ViMoE", [dense], None),
        ("dense, FFNs widened twofold", [wide], dense),
        ("ViMoE, all layers", [vimoe], dense),
        ("ViMoE, pruned", [vimoe], dense),
    ]
    if course.recovery:
        again = train(recovery(recipe, dense.model, course.recovery, folder / "dense_recovered", device))
        compared[-1:] = [
            ("dense, as many steps as the pruned", [dense, again], None),
            ("ViMoE, pruned and recovered", [vimoe, pruned], again),
        ]
    splits = open_recipe_data(recipe)
    models = [pruned if name.startswith("ViMoE, pruned") else runs[-1] for name, runs, _ in compared]
    scores = {run.path: _scores(run, splits, splits.test, device) for run in models}
    variants = [
        Variant(
            name=name,
            score=mean_score(scores[run.path]),
            cost=cost(load_model(run.model)),
            lost=None if other is None else mean_loss(scores[other.path], scores[run.path]),
            training=sum(each.read_rows()[-1]["seconds"] for each in runs),
        )
        for run, (name, runs, other) in zip(models, compared, strict=True)
    ]
    metric = analysis.metric
    table = comparison_table(variants, metric, len(splits.test), NOTE)
    sentence = comparison_sentence(variants[-1], variants[-2 if course.recovery else 1], metric, len(splits.test))
    shown = {"dense": start, "dense, trained on": dense, "dense, widened": wide, "ViMoE, all layers": vimoe}
    shown |= {"ViMoE, pruned": pruned} if course.recovery else {}
    command = f"vimoe demo --seed {seed}" + ("" if task == "classification" else f" --task {task}")
    found = analysis_report(vimoe.path, command)
    report = replace(
        found,
        title=course.title,
        conclusion=sentence,
        tables=[table, *found.tables],
        rows={name: run.read_rows() for name, run in shown.items()},
        recipes={name: (run.path / "recipe.yaml").read_text() for name, run in shown.items()},
        control=("dense, as many steps", mean_score(_scores(dense, splits, splits.val, device))),
    )
    path = write_page(report, folder / "report.html")
    print(f"\n{table.text()}\n\n{sentence}\nThe report lies in {path}")
    return path


def _of(runs: list[StudyRun], kind: str) -> RunFolder:
    return RunFolder(next(Path(run.recipe.output) for run in runs if run.kind == kind))


def _scores(run: RunFolder, splits: Splits, images: Images, device: str) -> Tensor:
    """`[N]` share of each image that a finished run's model has right."""
    model = load_model(run.model, device)
    seen = held_out(model, images, len(splits.class_names))
    return image_scores(model, seen.batches(), seen.score, device)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
