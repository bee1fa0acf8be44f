"""Finished runs side by side on the same images, and the dense control of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vimoe.analysis.analyze_run import finished_run
from vimoe.analysis.evaluate_run import Evaluation, evaluate
from vimoe.analysis.paired import mean_loss
from vimoe.errors import UserError
from vimoe.report.comparison import Variant
from vimoe.tasks.model import load_model
from vimoe.training.recipe import MAY_DIFFER, MOE_KEYS, Recipe, load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.vit.cost import cost


@dataclass(frozen=True)
class RunComparison:
    """Runs on the same images; changes are against the first one."""

    variants: tuple[Variant, ...]
    metric: str  # what the scores are: `top1`, or `pixels`
    data: str  # the images, in words
    images: int


def compare_runs(
    paths: Sequence[Path],
    *,
    split: str = "",
    data_dir: str | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
) -> RunComparison:
    """Score finished runs on the same images of their own data, paired with the first run image by image.

    Raises UserError if there are fewer than two runs, one is not finished, or they were made for other images.
    """
    if len({path.resolve() for path in paths}) < 2:
        raise UserError("a comparison needs two runs or more")
    runs = [finished_run(path) for path in paths]  # all of them, before the first is measured
    first: Evaluation | None = None
    names, variants = _names(paths), list[Variant]()
    for path, (run, _) in zip(paths, runs, strict=True):
        found = evaluate(path, split=split, data_dir=data_dir, batch_size=batch_size, workers=workers, device=device)
        first = first or found
        if found.metric != first.metric or found.images != first.images:
            raise UserError(
                f"{path} and {paths[0]} were not scored on the same images: {found.data} against {first.data}"
            )
        lost = None if found is first else mean_loss(first.scores, found.scores)
        seconds = run.read_rows()[-1]["seconds"]  # since the run began
        variants.append(Variant(names[path], found.score, cost(load_model(run.model)), lost, training=seconds))
    assert first is not None
    return RunComparison(tuple(variants), first.metric, first.data, len(first.scores))


def dense_control(path: Path, recipe: Recipe) -> RunFolder | None:
    """A finished dense run beside this one, with the same recipe but for the MoE layers; None where there is none."""
    alike = _without_moe(recipe)
    for file in sorted(path.resolve().parent.glob("*/recipe.yaml")):
        run = RunFolder(file.parent)
        if file.parent == path.resolve() or not run.finished:
            continue
        try:
            other = load_recipe(file)
        except UserError:
            continue
        if not other.upcycles and other.baseline in ("", "dense") and _without_moe(other) == alike:
            return run
    return None


def _without_moe(recipe: Recipe) -> Recipe:
    default, learns = Recipe(), {"last": recipe.last} if recipe.freeze == "trunk" else {}
    return replace(recipe, **{key: getattr(default, key) for key in (*MOE_KEYS, *MAY_DIFFER)} | learns)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """The folders' names, or the whole paths where two have one name."""
    names = [path.resolve().name for path in paths]
    return {path: name if names.count(name) == 1 else str(path) for path, name in zip(paths, names, strict=True)}
