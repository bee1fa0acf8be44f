"""A study from its file to its last result: what is done stays, what failed is told, the rest goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from vimoe.study.effort import effort_table, efforts, expected_seconds
from vimoe.study.gather import gather
from vimoe.study.grid import StudyRun, plan_runs
from vimoe.study.planned import plan_to_result
from vimoe.study.queue import Outcome
from vimoe.study.run_result import Result, read_result, run_to_result
from vimoe.study.study_file import Study
from vimoe.study.workers import run_all
from vimoe.training.progress import duration
from vimoe.training.run_folder import RunFolder


class Progress(NamedTuple):
    """Where a study stands.

    Attributes:
        runs: All its runs.
        results: Of those that are done, by name.
        failures: One line for each that failed or could not begin, by name.
    """

    runs: list[StudyRun]
    results: dict[str, Result]
    failures: dict[str, str]


def dry_run(study: Study, jobs: int) -> str:
    """The runs of a study with their cost, and how long they take as far as finished runs tell.

    Raises:
        UserError: The study asks for what cannot be done.
    """
    progress = standing(study)
    return effort_table(progress.runs, efforts(progress.runs), _seconds(progress), progress.results, jobs)


def standing(study: Study) -> Progress:
    """What of the study is done.

    Raises:
        UserError: A folder holds the run of another recipe.
    """
    runs = plan_runs(study)
    for run in runs:
        if not run.recovers:  # its folder holds the recipe of the recovery
            RunFolder(Path(run.recipe.output)).check(run.recipe)
    found = {run.name: read_result(Path(run.recipe.output)) for run in runs}
    return Progress(runs, {name: result for name, result in found.items() if result is not None}, {})


def execute(study: Study, jobs: int | None = None) -> Progress:
    """Do all runs of the study that are not done yet, a line of progress for each; after each the study's own files
    are brought up to date.

    Args:
        study: The study.
        jobs: Runs at once; one for each GPU where there are any and none is given, else one.

    Raises:
        UserError: The study asks for what cannot be done; nothing is begun then.
        InterruptedRun: The process was asked to stop.
    """
    progress = standing(study)
    left = [run for run in progress.runs if run.name not in progress.results]
    effort = efforts(progress.runs) if left else {}
    devices = offered_devices(str(study.base.get("device", "auto")))
    jobs = jobs or len(devices)
    _say(f"{len(progress.runs)} runs, {len(left)} to go, {jobs} at a time on {', '.join(devices)}")

    def note(outcome: Outcome) -> None:
        run = outcome.run
        left.remove(run)
        if outcome.failure:
            progress.failures[run.name] = outcome.failure
            told = f"failed: {outcome.failure}"
        else:
            result = read_result(Path(run.recipe.output))
            assert result is not None
            progress.results[run.name] = result
            gather(progress.runs, progress.results, study.output)
            metric = result["metric"]
            told = f"val {metric} {result[f'val_{metric}']:.2f}  test {metric} {result[f'test_{metric}']:.2f}"
            told += f"  {duration(result['seconds'])}"
        measured = _seconds(progress)
        rest = sum(expected_seconds(each, effort, measured) for each in left) / jobs
        ended = len(progress.runs) - len(left)
        about = f"  about {duration(rest)} left" if left and rest else ""
        _say(f"{ended:4}/{len(progress.runs)}  {run.name}  {told}{about}")

    if left:
        run_all(list(left), run_planned, jobs, devices, note)
    else:
        gather(progress.runs, progress.results, study.output)
    return progress


def run_planned(run: StudyRun) -> None:
    """What a worker process does with a run."""
    if run.recovers:
        plan_to_result(run)
    else:
        run_to_result(run.recipe)


def offered_devices(wanted: str) -> list[str]:
    """The devices that runs are spread over: every GPU this process may use for `auto` and `cuda`, else the one named.

    Args:
        wanted: As in a recipe.
    """
    gpus = torch.cuda.device_count() if wanted in ("auto", "cuda") else 0
    if gpus:
        return [f"cuda:{i}" for i in range(gpus)]
    return ["cpu"] if wanted == "auto" else [wanted]


def _seconds(progress: Progress) -> dict[str, list[float]]:
    """By setting, how long each finished run trained."""
    found: dict[str, list[float]] = {}
    for run in progress.runs:
        if run.name in progress.results:
            found.setdefault(run.setting, []).append(float(progress.results[run.name]["seconds"]))
    return found


def failure_line(progress: Progress) -> str:
    """What did not work, in one line."""
    names = list(progress.failures)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} of {len(progress.runs)} runs failed: {', '.join(names[:3])}{more}; their failed.txt says why"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
