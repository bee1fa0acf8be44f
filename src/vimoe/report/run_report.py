"""The report of an analyzed run, from its folder and its images."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.analyze_run import run_images
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.held_out import held_out
from vimoe.analysis.patches import ExpertMap, expert_map
from vimoe.data.images import ImageFiles, Images
from vimoe.data.splits import Splits
from vimoe.report.comparison import Evidence, comparison_sentence, pruning_table
from vimoe.report.gallery import gallery_places, thumbnails
from vimoe.report.latency_table import kept_latencies
from vimoe.report.page import Report
from vimoe.report.results import plan_sentence, plan_table
from vimoe.tasks.model import load_model
from vimoe.tasks.segmenter import Segmenter
from vimoe.training.recipe import load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.vit.cost import cost
from vimoe.vit.plan import Plan
from vimoe.vit.pruning import prune

# Images of a segmentation run whose expert maps are shown.
MAPS = 6


def analysis_report(path: Path, command: str, dataset: str | None = None, data_dir: str | None = None) -> Report:
    """What `command` (`vimoe analyze`) found on the run in `path`, and what the plan would make of it.

    `dataset` and `data_dir` win over the recipe's.

    Raises UserError if the run was not analyzed, or its images cannot be used.
    """
    run, analysis, plan = RunFolder(path), Analysis.load(path / "analysis.json"), Plan.load(path / "plan.json")
    recipe = load_recipe(path / "recipe.yaml")
    model = load_model(run.model)
    before, after = cost(model), cost(prune(load_model(run.model), plan))
    splits = run_images(run, recipe, dataset, data_dir)
    images = getattr(splits, analysis.split)
    seen = held_out(model, images, len(splits.class_names), recipe.workers, recipe.short_side)
    batches = seen.batches if _are_analyzed(images, analysis) else lambda: iter(())
    return Report(
        title=f"Which MoE layers of “{path.resolve().name}” earn their keep",
        conclusion=plan_sentence(analysis, plan, before, after),
        counts=RoutingCounts.load(path / "routing" / f"{analysis.split}.npz"),
        analysis=analysis,
        plan=plan,
        rows={"training": run.read_rows()},
        recipes={"training": (path / "recipe.yaml").read_text(encoding="utf-8")},
        command=command,
        tables=[plan_table(analysis, plan, before, after), *kept_latencies(path)],
        images=thumbnails(batches(), gallery_places(analysis), splits.form),
        maps=_maps(model, batches(), analysis.split_images, splits) if isinstance(model, Segmenter) else (),
    )


def pruning_report(path: Path, found: Evidence, command: str, data_dir: str | None = None) -> Report:
    """What pruning the analyzed run in `path` did, with the analysis that led to it and the plan that was carried out.

    Raises UserError if the run was not analyzed, or its images cannot be used.
    """
    name, output = "pruned and recovered" if found.epochs else "pruned, without recovery training", found.output
    before, last = replace(found.states[0], name="before pruning"), replace(found.states[-1], name=name)
    report = replace(
        analysis_report(path, command, data_dir=data_dir),
        title=f"What pruning “{path.resolve().name}” did",
        conclusion=comparison_sentence(last, before, found.metric, found.images, found.split),
        tables=[pruning_table(found)],
        plan=Plan.load(output / "plan.json"),
    )
    if not found.epochs:
        return report
    return replace(
        report,
        rows={**report.rows, "recovery": RunFolder(output).read_rows()},
        recipes={**report.recipes, "recovery": (output / "recipe.yaml").read_text(encoding="utf-8")},
    )


def _are_analyzed(images: Images, analysis: Analysis) -> bool:
    """Whether these are the images that were analyzed, as far as files tell: other data may have been named then."""
    files = images.samples if isinstance(images, ImageFiles) else None
    if files is None or len(files) != analysis.split_images:
        return files is None
    return all(str(files[place][0]) == path for place, path in analysis.paths.items())


def _maps(model: Segmenter, batches: Iterable[tuple[Tensor, Tensor]], images: int, splits: Splits) -> list[ExpertMap]:
    """Of images from all over the split: neighbours are often frames of one film."""
    pairs = (pair for batch in batches for pair in zip(*batch, strict=True))
    shown = islice(pairs, 0, None, max(1, images // MAPS))
    return [expert_map(model, image, mask, splits.form) for image, mask in islice(shown, MAPS)]
