"""A finished run of a study, analyzed, pruned as its plan says, and recovered: one run instead of a sweep over L."""

from __future__ import annotations

import time
from pathlib import Path

from vimoe.analysis.analyze_run import analyze_run
from vimoe.study.grid import StudyRun
from vimoe.study.prune_run import prune_run
from vimoe.study.run_result import Result, keep_result, measure, read_result
from vimoe.training.recipe import load_recipe
from vimoe.training.run_folder import RunFolder


def plan_to_result(run: StudyRun) -> Result:
    """Make of the run that this one needs what its own plan says, and note down what came of it.

    The plan is made on the validation split. `seconds` of the result are those of analysis and recovery.

    Raises:
        UserError: The run that it needs is not finished or cannot be analyzed.
        InterruptedRun: The process was asked to stop; the state is written.
    """
    assert run.needs is not None
    folder, device, workers = Path(run.recipe.output), run.recipe.device, run.recipe.workers
    if found := read_result(folder):
        return found
    origin = folder.parents[1] / run.needs
    begun = time.perf_counter()
    analyze_run(origin, workers=workers, device=device)
    analysis = time.perf_counter() - begun
    prune_run(origin, output=folder, device=device)
    pruned = RunFolder(folder)
    result = measure(pruned, load_recipe(folder / "recipe.yaml"))
    return keep_result(pruned, result | {"seconds": result["seconds"] + analysis, "analysis_seconds": analysis})
