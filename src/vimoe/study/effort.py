"""What the runs of a study cost before they are run, and how long the rest of them will take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from vimoe.data.splits import Splits
from vimoe.errors import UserError
from vimoe.report.tables import Table, giga_macs, millions
from vimoe.study.grid import DATA_AND_MODEL, StudyRun
from vimoe.training.build import build_model
from vimoe.training.progress import duration
from vimoe.training.recipe import Recipe
from vimoe.training.source import open_recipe_data
from vimoe.vit.cost import Cost, cost

# A backward takes twice the multiply-adds of its forward.
FORWARDS_A_STEP = 3


class Effort(NamedTuple):
    """What a run takes.

    Attributes:
        cost: Of its model, for one image.
        images: Images shown in training, over all epochs.
    """

    cost: Cost
    images: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole training, forward and backward."""
        return FORWARDS_A_STEP * self.images * self.cost.macs


def efforts(runs: Iterable[StudyRun]) -> dict[str, Effort]:
    """By setting, what its runs take; a recovery is counted as if nothing had been pruned.

    Models are built without weights, and images are counted, not read.

    Raises:
        UserError: A run's model or data cannot be made; the line names the run.
    """
    found: dict[str, Effort] = {}
    opened: dict[str, Splits] = {}
    for run in runs:
        if run.setting in found:
            continue
        recipe = replace(run.recipe, in_memory=False, pretrained=False)
        if run.needs is not None:
            recipe = replace(recipe, initial_checkpoint=None)
        data = repr([getattr(recipe, key) for key in (*DATA_AND_MODEL, "initial_checkpoint")])
        try:
            if data not in opened:
                opened[data] = open_recipe_data(recipe)
            splits = opened[data]
            trained = replace(recipe, epochs=run.recovers or recipe.epochs)
            found[run.setting] = Effort(_count(recipe, splits), shown_images(trained, len(splits.train)))
        except UserError as error:
            raise UserError(f"run {run.name}: {error}") from error
    return found


def shown_images(recipe: Recipe, training_images: int) -> int:
    """Images that a run trains on, counted once an epoch; what fills no step is left out."""
    steps = training_images // recipe.batch_size // recipe.accumulate
    return recipe.epochs * steps * recipe.accumulate * recipe.batch_size


def expected_seconds(run: StudyRun, effort: Mapping[str, Effort], measured: Mapping[str, Sequence[float]]) -> float:
    """How long a run will take: as long as those of its setting did, else by its multiply-adds; 0 when nothing ran.

    Args:
        run: The run.
        effort: By setting.
        measured: By setting, the seconds of each finished run.
    """
    own = measured.get(run.setting)
    if own:
        return sum(own) / len(own)
    seconds = sum(sum(each) for each in measured.values())
    macs = sum(len(each) * effort[setting].macs for setting, each in measured.items())
    return seconds / macs * effort[run.setting].macs if macs else 0.0


def effort_table(
    runs: Sequence[StudyRun],
    effort: Mapping[str, Effort],
    measured: Mapping[str, Sequence[float]],
    done: Iterable[str],
    jobs: int,
) -> str:
    """What `--dry-run` prints: a line for each setting with its runs, and the total.

    Args:
        runs: All runs of the study.
        effort: By setting.
        measured: By setting, the seconds of each finished run.
        done: Names of the runs with a result.
        jobs: How many run at once.
    """
    done = set(done)
    settings: dict[str, list[StudyRun]] = {}
    for run in runs:
        settings.setdefault(run.setting, []).append(run)
    rows = []
    for setting, same in settings.items():
        taken = effort[setting]
        rows.append(
            [
                setting,
                str(len(same)),
                str(sum(run.name in done for run in same)),
                millions(taken.cost.stored_params),
                millions(taken.cost.activated_params),
                giga_macs(taken.cost.macs),
                f"{taken.images:,}",
                f"{taken.macs / 1e12:,.1f}",
                duration(expected_seconds(same[0], effort, measured)) if measured else "-",
            ]
        )
    header = ("setting", "runs", "done", "stored", "activated", "an image", "images", "TMAC a run", "time a run")
    left = [run for run in runs if run.name not in done]
    total = sum(effort[run.setting].macs for run in runs)
    lines = [
        Table(header, rows).text(),
        "",
        f"{len(runs)} runs, {len(runs) - len(left)} done; {total / 1e12:,.1f} TMAC in all, "
        f"{sum(effort[run.setting].macs for run in left) / 1e12:,.1f} to go",
    ]
    if measured:
        seconds = sum(expected_seconds(run, effort, measured) for run in left) / jobs
        lines.append(f"about {duration(seconds)} left with {jobs} at a time, going by the finished runs")
    return "\n".join(lines)


def _count(recipe: Recipe, splits: Splits) -> Cost:
    if recipe.initial_checkpoint:  # its weights have to be read
        return cost(build_model(recipe, splits))
    with torch.device("meta"):
        return cost(build_model(recipe, splits))
