"""The analysis of a finished run: its model on its own held-out images, and what is written beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vimoe.analysis.analysis import analyze
from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.expert_criteria import check_criteria
from vimoe.analysis.held_out import Sample, draw, held_out
from vimoe.analysis.planning import MAX_DROP
from vimoe.data.images import ImageFiles, Images
from vimoe.data.splits import Splits, check_classes
from vimoe.errors import UserError
from vimoe.tasks.model import load_model, model_classes
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.source import open_recipe_data
from vimoe.vit.blocks import moe_layers
from vimoe.vit.plan import Plan


def analyze_run(
    path: Path,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    split: str = "val",
    sample: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
    shuffles: int = 199,
    max_drop: float = MAX_DROP,
    experts: Sequence[str] = (),
    note: Callable[[str], None] = lambda _: None,
) -> tuple[Analysis, Plan]:
    """Analyze a finished run and write `routing/SPLIT.npz`, `analysis.json` and `plan.json` into its folder.

    All three are written at the end, so that a mistake leaves those of an earlier analysis alone.

    Args:
        dataset: Instead of the recipe's.
        data_dir: Instead of the recipe's.
        split: `train`, `val` or `test`. `vimoe prune` reports on another one.
        sample: So many images of the split, each class in its share (see `draw`); all by default. Intervals are
            those of so many images drawn at random, which is a little wider than such a sample needs.
        shuffles: Shuffled tables behind every chance level.
        max_drop: Percentage points that the plan may lose.
        experts: Criteria by which each expert is scored, see `expert_criteria.CRITERIA`.
        note: Called with a line on what is odd but stops nothing.

    Raises UserError if the run is not finished, has no MoE layer, a criterion is unknown or not to be had of this run,
    its images cannot be used, or another process works in the folder.
    """
    check_criteria(experts)
    run, recipe = finished_run(path)
    splits = run_images(run, recipe, dataset, data_dir)
    whole: Images = getattr(splits, split)
    images = whole if sample is None else draw(whole, sample, recipe.seed)
    places = images.places if isinstance(images, Sample) else None
    device = pick_device(device)
    broken: dict[str, None] = {}  # in order, and each once however often it is met
    model = load_model(run.model, device)
    initial = run.read_initial_routers() if "router-change" in experts and moe_layers(model) else {}
    classes = len(splits.class_names)
    seen = held_out(model, images, classes, workers, recipe.short_side, batch_size, broken.setdefault)
    with run.locked():
        counts, analysis, plan = analyze(
            model,
            seen,
            splits.class_names,
            split=split,
            device=device,
            shuffles=shuffles,
            max_drop=max_drop,
            places=places,
            split_images=len(whole),
            criteria=experts,
            initial_routers={number: torch.from_numpy(weight) for number, weight in initial.items()},
        )
        for line in broken:
            note(line)
        for name, count in zip(counts.class_names, counts.counts[0].sum(1), strict=True):
            if not count:
                note(f"no {analysis.unit} looked at in {split} is of class {name!r}: nothing is said about it")
        if isinstance(whole, ImageFiles) and not broken:  # else an image's place is not its place in the list of files
            named = {place for layer in analysis.layers for e in layer.experts for place in (*e.confident, *e.unsure)}
            files = {place: whole.samples[place][0] for place in sorted(named)}
            analysis = replace(analysis, paths={p: str(f) for p, f in files.items() if isinstance(f, str | Path)})
        counts = replace(counts, super_classes=splits.super_classes)
        counts.save(run.path / "routing" / f"{split}.npz")
        analysis.save(run.path / "analysis.json")
        plan.save(run.path / "plan.json")
    return analysis, plan


def finished_run(path: Path) -> tuple[RunFolder, Recipe]:
    """A run and its recipe. Raises UserError if there is no run, or it is not finished."""
    run = RunFolder(path)
    if not (path / "recipe.yaml").exists():
        raise UserError(f"{path} is not a run folder: it holds no recipe.yaml")
    if not run.finished:
        raise UserError(f"the run in {path} is not finished: the `vimoe train` command that began it goes on with it")
    return run, load_recipe(path / "recipe.yaml")


def run_images(run: RunFolder, recipe: Recipe, dataset: str | None = None, data_dir: str | None = None) -> Splits:
    """A run's images as its model evaluates them. Raises UserError if they are unusable, or of other classes."""
    source = replace(recipe, data_dir=data_dir or recipe.data_dir, augment=False)
    if dataset and dataset != recipe.dataset:
        source = replace(source, dataset=dataset, dataset_args={})
    # The finished model says how it wants its images: what it started from may have gone since.
    splits = open_recipe_data(replace(source, initial_checkpoint=str(run.model)))
    names = model_classes(run.model) or splits.class_names
    check_classes(splits.class_names, names, "the images have other classes than the run")
    return splits
