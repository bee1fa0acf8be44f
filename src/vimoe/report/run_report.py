"""The report of an analyzed run, from its folder and its images."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.analyze_run import run_images
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.held_out import held_out
from vimoe.analysis.patches import ExpertMap, expert_map
from vimoe.data.splits import Splits
from vimoe.report.comparison import Variant, comparison_sentence, pruning_table
from vimoe.report.gallery import gallery_places, thumbnails
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
    """What `vimoe analyze` found on a run, and what the plan would make of it.

    Args:
        path: The run folder, with `analysis.json`, `plan.json` and its routing counts.
        command: What made the analysis.
        dataset: Instead of the recipe's.
        data_dir: Instead of the recipe's.

    Raises:
        UserError: The run was not analyzed, or its images cannot be used.
    """
    run, analysis, plan = RunFolder(path), Analysis.load(path / "analysis.json"), Plan.load(path / "plan.json")
    recipe = load_recipe(path / "recipe.yaml")
    model = load_model(run.model)
    before, after = cost(model), cost(prune(load_model(run.model), plan))
    splits = run_images(run, recipe, dataset, data_dir)
    seen = held_out(
        model,
        getattr(splits, analysis.split),
        len(splits.class_names),
        workers=recipe.workers,
        short_side=recipe.short_side,
    )
    return Report(
        title=f"Which MoE layers of “{path.resolve().name}” earn their keep",
        conclusion=plan_sentence(analysis, plan, before, after),
        counts=RoutingCounts.load(path / "routing" / f"{analysis.split}.npz"),
        analysis=analysis,
        plan=plan,
        rows={"training": run.read_rows()},
        recipes={"training": (path / "recipe.yaml").read_text(encoding="utf-8")},
        command=command,
        tables=[plan_table(analysis, plan, before, after)],
        images=thumbnails(seen.batches(), gallery_places(analysis), splits.form.mean, splits.form.std),
        maps=_maps(model, seen.batches(), analysis.split_images, splits) if isinstance(model, Segmenter) else (),
    )


def pruning_report(
    path: Path,
    output: Path,
    states: Sequence[Variant],
    metric: str,
    images: int,
    command: str,
    data_dir: str | None = None,
    split: str = "test",
    decided: bool = False,
) -> Report:
    """What pruning an analyzed run did, with the analysis that led to it.

    Args:
        path: The run folder.
        output: The pruned model's folder, with the plan that was carried out.
        states: The model before pruning, right after it, and recovered where it was.
        metric: What their score counts.
        images: How many were scored.
        command: What pruned it.
        data_dir: Where the images lie now, if they were moved.
        split: Their split.
        decided: Whether they made the plan as well.

    Raises:
        UserError: The run was not analyzed, or its images cannot be used.
    """
    before, last = replace(states[0], name="before pruning"), states[-1]
    last = replace(last, name="pruned and recovered" if len(states) > 2 else "pruned, without recovery training")
    report = replace(
        analysis_report(path, command, data_dir=data_dir),
        title=f"What pruning “{path.resolve().name}” did",
        conclusion=comparison_sentence(last, before, metric, images, split),
        tables=[pruning_table(states, metric, images, split, decided)],
        plan=Plan.load(output / "plan.json"),
    )
    if not (output / "recipe.yaml").exists():  # no recovery
        return report
    return replace(
        report,
        rows={**report.rows, "recovery": RunFolder(output).read_rows()},
        recipes={**report.recipes, "recovery": (output / "recipe.yaml").read_text(encoding="utf-8")},
    )


def _maps(model: Segmenter, batches: Iterable[tuple[Tensor, Tensor]], images: int, splits: Splits) -> list[ExpertMap]:
    """Of images from all over the split: neighbours are often frames of one film."""
    pairs = (pair for batch in batches for pair in zip(*batch, strict=True))
    shown = islice(pairs, 0, None, max(1, images // MAPS))
    return [expert_map(model, image, mask, splits.form.mean, splits.form.std) for image, mask in islice(shown, MAPS)]
