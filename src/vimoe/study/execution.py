"""A study from its file to its last result: what is done stays, what fails is reported, the rest goes on."""

import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from vimoe.analysis.analyze_run import analyze_run
from vimoe.study.comparisons import comparisons, spread
from vimoe.study.effort import effort_table, efforts, expected_seconds, seeds_line
from vimoe.study.grid import StudyRun, list_runs
from vimoe.study.processes import FAILED_FILE, run_all
from vimoe.study.prune_run import prune_run
from vimoe.study.recovery import RECOVERY
from vimoe.study.run_result import Result, keep_result, measure, read_result
from vimoe.study.study_file import Study
from vimoe.study.study_table import gather, read_table
from vimoe.training.fit import train
from vimoe.training.progress import duration
from vimoe.training.recipe import load_recipe
from vimoe.training.run_folder import RunFolder

# A study may grow in its folder: each run's own recipe says whether it is the same one.
MADE_BY = {"verb": "study"}


class Progress(NamedTuple):
    """Where a study stands: by name, the results of runs that are done, and a line for each that failed."""

    runs: list[StudyRun]
    results: dict[str, Result]
    failures: dict[str, str]

    def seconds(self) -> dict[str, list[float]]:
        """By setting, how long each finished run trained."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            if run.name in self.results:
                found.setdefault(run.setting, []).append(float(self.results[run.name]["seconds"]))
        return found

    def failure_line(self) -> str:
        """What did not work, in one line."""
        number, names = len(self.failures), ", ".join(list(self.failures)[:3])
        more = f" and {number - 3} more" if number > 3 else ""
        return f"{number} of {len(self.runs)} runs failed: {names}{more}; their {FAILED_FILE} says why"


def dry_run(study: Study, jobs: int = 1, detect: float = 0.5, pilot: Path | None = None) -> str:
    """The runs of a study with their cost, how long they take as far as finished runs tell, and what they can show.

    `detect` is the difference between two settings, in points, that the study should find; how much differences spread
    say the seeds of a `pilot`'s folder, by default this study's own.

    Raises UserError if the study asks for what cannot be done, or the pilot's folder holds no study.
    """
    progress = standing(study)
    table = effort_table(progress.runs, efforts(progress.runs), progress.seconds(), progress.results, jobs)
    known = pilot or (study.output / "study.csv").exists()
    std = spread(comparisons(read_table(pilot or study.output).rows)) if known else math.nan
    return f"{table.text()}\n{seeds_line(std, len(study.seeds), detect)}"


def standing(study: Study) -> Progress:
    """What of the study is done. Raises UserError if a folder holds another recipe's run, or no study's."""
    runs = list_runs(study)
    RunFolder(study.output).check_inputs(MADE_BY)
    for run in runs:
        if not run.recovers:  # its folder holds the recipe of the recovery
            RunFolder(Path(run.recipe.output)).check(run.recipe)
    found = {run.name: read_result(Path(run.recipe.output)) for run in runs}
    return Progress(runs, {name: result for name, result in found.items() if result is not None}, {})


def execute(study: Study, jobs: int | None = None) -> Progress:
    """Do all runs of the study that are not done yet, with a line of progress for each.

    The study's own files are brought up to date after each run. By default one run for each GPU goes at once, or one.

    Raises UserError if the study asks for what cannot be done, or another process works on it (nothing is begun then),
    InterruptedRun if the process was asked to stop.
    """
    progress = standing(study)
    left = [run for run in progress.runs if run.name not in progress.results]
    effort = efforts(progress.runs) if left else {}
    devices = offered_devices(str(study.base.get("device", "auto")))
    jobs = jobs or len(devices)
    _say(f"{len(progress.runs)} runs, {len(left)} to go, {jobs} at a time on {', '.join(devices)}")

    def note(run: StudyRun, failure: str) -> None:
        left.remove(run)
        if failure:
            progress.failures[run.name] = failure
            line = f"failed: {failure}"
        else:
            result = read_result(Path(run.recipe.output))
            assert result is not None
            progress.results[run.name] = result
            gather(progress.runs, progress.results, study.output)
            metric = result["metric"]
            line = f"val {metric} {result[f'val_{metric}']:.2f}  test {metric} {result[f'test_{metric}']:.2f}"
            line += f"  {duration(result['seconds'])}"
        measured = progress.seconds()
        rest = sum(expected_seconds(each, effort, measured) for each in left) / jobs
        about = f"  about {duration(rest)} left" if left and rest else ""
        _say(f"{len(progress.runs) - len(left):4}/{len(progress.runs)}  {run.name}  {line}{about}")

    home = RunFolder(study.output)
    with home.locked():
        home.write_inputs(MADE_BY)
        gather(progress.runs, progress.results, study.output)
        if left:
            run_all(list(left), do_run, jobs, devices, note)
    return progress


def do_run(run: StudyRun) -> None:
    """Do a run to its result; what the process of a run is for.

    A run that recovers is what the plan of the run that it needs makes of that one. The plan is made on the
    validation split, and `seconds` of the result are those of analysis and recovery.

    Raises UserError if something in the recipe cannot be done, InterruptedRun if the process was asked to stop; the
    state is written then.
    """
    folder = RunFolder(Path(run.recipe.output))
    if read_result(folder.path):
        return
    if not run.recovers:
        train(run.recipe)
        keep_result(folder, measure(folder, run.recipe))
        return
    assert run.needs is not None
    origin, device = folder.path.parents[1] / run.needs, run.recipe.device
    begun = time.perf_counter()
    analyze_run(origin, workers=run.recipe.workers, device=device)
    analysis = time.perf_counter() - begun
    prune_run(origin, recover=RECOVERY, output=folder.path, device=device)
    result = measure(folder, load_recipe(folder.path / "recipe.yaml"))
    keep_result(folder, result | {"seconds": result["seconds"] + analysis, "analysis_seconds": analysis})


def offered_devices(wanted: str) -> list[str]:
    """The devices that runs are spread over: every GPU for `auto` and `cuda`, else the one named."""
    gpus = torch.cuda.device_count() if wanted in ("auto", "cuda") else 0
    return [f"cuda:{i}" for i in range(gpus)] or ["cpu" if wanted == "auto" else wanted]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
