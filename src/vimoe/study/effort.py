"""What the runs of a study cost before they are run, how long the rest will take, and what their seeds can tell."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch

from vimoe.data.splits import Splits
from vimoe.errors import UserError
from vimoe.report.tables import Table
from vimoe.study.grid import DATA_AND_MODEL, StudyRun
from vimoe.study.statistics import seeds_needed, smallest_difference
from vimoe.training.build import build_model
from vimoe.training.optimizer import first_trained_block
from vimoe.training.progress import duration
from vimoe.training.recipe import Recipe
from vimoe.training.source import open_recipe_data
from vimoe.vit.cost import Cost, cost, giga_macs, millions
from vimoe.vit.trunk import trunk_macs

# A backward takes twice the multiply-adds of its forward.
FORWARDS_A_STEP = 3


class Effort(NamedTuple):
    """What a run takes: its model's cost for one image, and the images shown in training, over all epochs.

    Of a frozen trunk these are its multiply-adds for one image, and the images that it sees: fewer where they are kept.
    """

    cost: Cost
    images: int
    trunk_macs: int = 0
    trunk_images: int = 0

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole training: forward and backward, and forward alone through a frozen trunk."""
        return FORWARDS_A_STEP * self.images * (self.cost.macs - self.trunk_macs) + self.trunk_images * self.trunk_macs


def efforts(runs: Iterable[StudyRun]) -> dict[str, Effort]:
    """By setting, what its runs take; a recovery is counted as if nothing had been pruned.

    Models are built without weights, and images are counted, not read.

    Raises UserError if a run's model or data cannot be made; the line names the run.
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
            steps = training_steps(replace(recipe, epochs=run.recovers or recipe.epochs), len(splits.train))
            with nullcontext() if recipe.start else torch.device("meta"):  # a start's weights have to be read
                model = build_model(recipe, splits)
            shown = steps * recipe.accumulate * recipe.batch_size
            trunk = trunk_macs(model, first_trained_block(model, recipe)) if recipe.freezes_trunk else 0
            seen = recipe.feature_views * len(splits.train) if recipe.cache_features else shown
            found[run.setting] = Effort(cost(model), shown, trunk, seen if trunk else 0)
        except UserError as error:
            raise UserError(f"run {run.name}: {error}") from error
    return found


def training_steps(recipe: Recipe, training_images: int) -> int:
    """Steps of a run over all epochs; images that fill no step are left out."""
    return recipe.epochs * (training_images // recipe.batch_size // recipe.accumulate)


def expected_seconds(run: StudyRun, effort: Mapping[str, Effort], measured: Mapping[str, Sequence[float]]) -> float:
    """How long a run will take: as long as those of its setting did, else by its multiply-adds; 0 when nothing ran.

    Settings have their effort, and the seconds that each finished run of theirs was `measured` to take.
    """
    if own := measured.get(run.setting):
        return sum(own) / len(own)
    macs = sum(len(each) * effort[setting].macs for setting, each in measured.items())
    return sum(map(sum, measured.values())) / macs * effort[run.setting].macs if macs else 0.0


def effort_table(
    runs: Sequence[StudyRun],
    effort: Mapping[str, Effort],
    measured: Mapping[str, Sequence[float]],
    done: Collection[str],
    jobs: int,
) -> Table:
    """What `--dry-run` prints: a line for each setting with its runs, and the total; arguments as above.

    `done` names the runs with a result, and `jobs` run at once.
    """
    rows = []
    for setting, taken in effort.items():
        same = [run for run in runs if run.setting == setting]
        rows.append(
            [
                *(setting, str(len(same)), str(sum(run.name in done for run in same))),
                *(millions(taken.cost.stored_params), millions(taken.cost.activated_params)),
                *(giga_macs(taken.cost.macs), f"{taken.images:,}", f"{taken.macs / 1e12:,.1f}"),
                duration(expected_seconds(same[0], effort, measured)) if measured else "-",
            ]
        )
    header = ("setting", "runs", "done", "stored", "activated", "an image", "images", "TMAC a run", "time a run")
    left = [run for run in runs if run.name not in done]
    total, rest = (sum(effort[run.setting].macs for run in some) / 1e12 for some in (runs, left))
    line = f"{len(runs)} runs, {len(runs) - len(left)} done; {total:,.1f} TMAC in all, {rest:,.1f} to go"
    if measured:
        seconds = sum(expected_seconds(run, effort, measured) for run in left) / jobs
        line += f"\nabout {duration(seconds)} left with {jobs} at a time, going by the finished runs"
    return Table(header, rows, [line])


def seeds_line(std: float, seeds: int, difference: float) -> str:
    """Whether so many seeds find a true difference (points), by the `std` of paired differences between a pilot's."""
    if not std > 0:
        return f"how many seeds show a difference of {difference:g} points cannot be told: no pilot with two seeds"
    needed = seeds_needed(std, difference)
    shown = f"{seeds} seeds show {smallest_difference(std, seeds):.2f}" if seeds > 1 else "one seed shows none"
    return (
        f"paired differences spread by {std:.2f} points between the pilot's seeds: a difference of {difference:g} is "
        f"found in 80 % of cases with {needed or 'more than 1000'} seeds; {shown}"
    )
