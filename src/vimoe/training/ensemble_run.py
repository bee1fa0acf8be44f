"""An ensemble's run: its members are dense runs of their own, one after the other, and then one model."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from statistics import mean
from typing import Any

from vimoe.data.splits import Splits
from vimoe.distributed import barrier, rank
from vimoe.tasks.task import Task
from vimoe.training.build import build_model
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import Row, RunFolder
from vimoe.vit.checkpoint import load
from vimoe.vit.ensemble import Ensemble, members_of

# Between the seeds of two members; the first has the run's own and is its dense baseline.
SEEDS_APART = 1_000_003


def train_ensemble(
    recipe: Recipe,
    splits: Splits,
    task: Task,
    run: RunFolder,
    changed: dict[str, list[Any]],
    train_one: Callable[[Recipe], RunFolder],
) -> None:
    """Train an ensemble to its end, or from where its folder stands; all processes call this together.

    Members differ in all that the seed decides but the splits: new weights, order, augmentation, dropout. Their folders
    are removed in the end. There is one row of metrics: the members' means, and the whole ensemble on the validation
    split.
    """
    device = pick_device(recipe.device)
    with ExitStack() as stack:
        if first := rank() == 0:
            stack.enter_context(run.locked())
            if changed:
                run.note_change(changed, 1, 0)
            run.write_recipe(recipe)
            run.write_train_images(splits.train)
        runs = [
            train_one(
                replace(
                    recipe,
                    baseline="dense",
                    seed=recipe.seed + number * SEEDS_APART,
                    output=str(run.path / "members" / str(number)),
                )
            )
            for number in range(len(members_of(build_model(recipe, splits))))
        ]
        model = Ensemble([load(member.model, device) for member in runs]).eval()
        val = task.evaluate(model, splits.val, device, recipe.workers, max_broken=recipe.max_broken)
        if first:
            run.write_rows([_row([member.read_rows()[-1] for member in runs], val)])
            task.save(model, run.model, splits)
            shutil.rmtree(run.path / "members")
        barrier()


def _row(members: list[Row], val: dict[str, float]) -> Row:
    row = {key: mean(member[key] for member in members) for key in ("loss", "lr")}
    together = {key: sum(member[key] for member in members) for key in ("trained_params", "seconds")}
    return {
        "epoch": members[0]["epoch"],
        **row,
        **{f"val_{key}": v for key, v in val.items()},
        **together,
        "routing": {},
    }
