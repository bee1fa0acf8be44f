"""Runs in processes of their own: one that dies takes only its run with it, and none goes on without the study."""

import contextlib
import faulthandler
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import torch

from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.study.grid import StudyRun
from vimoe.training.interrupt import InterruptedRun, listening

Work = Callable[[StudyRun], object]

FAILED_FILE = "failed.txt"
LOG_FILE = "log.txt"
_FAILED, _INTERRUPTED = 1, 130  # exit codes
# Seconds that the process of a study that was killed may take to write its run's state.
_PATIENCE = 120.0


def run_all(
    runs: Sequence[StudyRun], work: Work, jobs: int, devices: Sequence[str], on_end: Callable[[StudyRun, str], None]
) -> None:
    """Do `work` on every run, `jobs` at a time; a run that needs another one of these waits for it.

    Args:
        runs: The runs; one that is needed comes before those that need it.
        work: A function of the top level of a module. What it prints goes into the run's `log.txt`, what it raises
            into its `failed.txt`.
        jobs: Processes at once; they share the threads that torch would use here.
        devices: Names as in a recipe, taken in turn.
        on_end: Called with each run that ended or cannot begin, and with one line on what went wrong, empty where
            nothing did; not called with runs that were interrupted.

    Raises InterruptedRun if this process was asked to stop; the runs that were going have written their states.
    """
    # A process forked from one that has used CUDA cannot use it, and one that is spawned has to import torch.
    method = "forkserver" if sys.platform == "linux" else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([work.__module__])
    jobs = max(1, min(jobs, len(runs)))
    free = [devices[i % len(devices)] for i in range(jobs)]
    threads = max(1, torch.get_num_threads() // jobs)
    waiting, undone, failed = list(runs), {run.name for run in runs}, set[str]()
    going: dict[Any, tuple[Any, StudyRun, str]] = {}
    passed_on = False
    try:
        with listening() as stop:
            while True:
                for run in list(waiting):  # what is needed comes before what needs it
                    if run.needs in failed:
                        waiting.remove(run)
                        failed.add(run.name)
                        on_end(run, f"not begun, since {run.needs} failed")
                ready = [run for run in waiting if run.needs not in undone]
                for run in [] if stop.asked else ready[: len(free)]:
                    waiting.remove(run)
                    (Path(run.recipe.output) / FAILED_FILE).unlink(missing_ok=True)
                    device = free.pop(0)
                    mine = replace(run, recipe=replace(run.recipe, device=device))
                    process = context.Process(target=_do, args=(mine, work, threads))
                    process.start()
                    going[process.sentinel] = process, run, device
                if not going:
                    break
                for sentinel in connection.wait(list(going), timeout=0.5):
                    process, run, device = going.pop(sentinel)
                    process.join()
                    free.append(device)
                    if process.exitcode == 0:
                        undone.discard(run.name)
                        on_end(run, "")
                    elif not stop.asked:
                        failed.add(run.name)
                        on_end(run, _failure(run, process.exitcode))
                if stop.asked and not passed_on:
                    for process, _, _ in going.values():
                        process.terminate()
                    passed_on = True
    finally:
        for process, _, _ in going.values():
            process.kill()
            process.join()
    if passed_on:
        raise InterruptedRun("the study was stopped, its runs have written their states; the same command goes on")


def _do(run: StudyRun, work: Work, threads: int) -> None:
    """What the process of a run does; its exit code is 0 where the run is done."""
    folder = Path(run.recipe.output)
    try:
        os.setsid()  # Ctrl-C in a terminal goes to the study, which passes it on once
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        multiprocessing.set_start_method(None, force=True)  # loaders start their workers as in a run by hand
        torch.set_num_threads(threads)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG_FILE).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        print(time.strftime("%Y-%m-%d %H:%M:%S begun"), flush=True)
        faulthandler.enable()
        _wait_until_free(folder)
        work(run)
    except (InterruptedRun, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        more = "" if isinstance(error, UserError) else f"\n\n{traceback.format_exc()}"
        write_text(folder / FAILED_FILE, f"{' '.join(reason.split())}\n{more}")
        sys.exit(_FAILED)


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _wait_until_free(folder: Path) -> None:
    """Wait while the process of a study that was killed still writes the run's state."""
    end = time.monotonic() + _PATIENCE
    with (folder / ".lock").open("w") as lock:
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.2)


def _failure(run: StudyRun, code: int) -> str:
    """Why a run failed, in one line, whatever is left of its process."""
    path = Path(run.recipe.output) / FAILED_FILE
    if not path.exists():
        write_text(path, f"its process ended with code {code}, see {LOG_FILE}\n")
    return path.read_text().partition("\n")[0]
