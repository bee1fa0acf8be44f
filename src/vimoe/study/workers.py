"""Runs spread over processes: one run at a time in each, and a process that dies takes only its run with it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from vimoe.errors import UserError
from vimoe.study.grid import StudyRun
from vimoe.study.queue import Outcome, Queue
from vimoe.training.interrupt import InterruptedRun, listening

Work = Callable[[StudyRun], object]

FAILED_FILE = "failed.txt"
LOG_FILE = "log.txt"


def run_all(
    runs: Sequence[StudyRun], work: Work, jobs: int, devices: Sequence[str], on_end: Callable[[Outcome], None]
) -> None:
    """Do `work` on every run, `jobs` at a time.

    Args:
        runs: The runs to do; one that needs another waits for it.
        work: A function of the top level of a module (it is sent to other processes). What it prints goes into the
            run's `log.txt`, what it raises into its `failed.txt`.
        jobs: Processes.
        devices: Process i works on device i, over and over; a name as in a recipe.
        on_end: Told of each run when it has ended; not of those that were interrupted.

    Raises:
        InterruptedRun: This process was asked to stop; the runs that were going have written their states.
    """
    queue = Queue.of(runs)
    count = min(jobs, len(runs))
    workers = [_Worker(work, devices[i % len(devices)], max(1, _cores() // max(1, count))) for i in range(count)]
    told = False
    try:
        with listening() as stop:
            while True:
                for worker in workers:
                    if not stop.asked and worker.run is None and (run := queue.take()) is not None:
                        worker.begin(run)
                busy = [worker for worker in workers if worker.run is not None]
                if not busy:
                    break
                ready = connection.wait([worker.pipe for worker in busy], timeout=0.5)
                for worker in busy:
                    if worker.pipe in ready and (outcome := worker.end()) is not None:
                        for each in queue.note(outcome):
                            on_end(each)
                if stop.asked and not told:
                    for worker in workers:
                        worker.ask_to_stop()
                    told = True
    finally:
        for worker in workers:
            worker.close()
    if told:
        raise InterruptedRun("the study was stopped, its runs have written their states; the same command goes on")


class _Worker:
    """A process that does one run after the other."""

    def __init__(self, work: Work, device: str, threads: int) -> None:
        self._work, self._device, self._threads = work, device, threads
        self._told = False
        self.run: StudyRun | None = None
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")  # a process forked from one that has used CUDA cannot use it
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._work, self._threads), daemon=False)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it begins deaf to Ctrl-C, see `_serve`
        self._process.start()
        signal.signal(signal.SIGINT, before)
        theirs.close()

    def begin(self, run: StudyRun) -> None:
        """Hand a run to the process."""
        self.run = run
        with contextlib.suppress(OSError):  # it has died: `end` will find out
            self.pipe.send(replace(run, recipe=replace(run.recipe, device=self._device)))

    def end(self) -> Outcome | None:
        """How the run ended, None when it was interrupted; a process that died is replaced."""
        assert self.run is not None
        run, self.run = self.run, None
        try:
            failure: str | None = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            if self._told:
                return None
            failure = f"its process ended with code {self._process.exitcode}"
            _note_failure(run, failure)
            self._start()
        return None if failure is None else Outcome(run, failure)

    def ask_to_stop(self) -> None:
        """Have the process write its run's state and stop."""
        self._told = True
        if self.run is not None and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End the process, at once if it is still at work."""
        self.pipe.close()
        if self.run is not None:
            self._process.kill()
        self._process.join()


def _serve(pipe: Connection, work: Work, threads: int) -> None:
    """What a worker process does: runs from the pipe, until it is closed."""
    os.setsid()  # Ctrl-C in a terminal goes to the study, which passes it on once
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            run: StudyRun = pipe.recv()
            pipe.send(_attempt(run, work))


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _attempt(run: StudyRun, work: Work) -> str | None:
    """What went wrong in one line, nothing where nothing did, None where the run was interrupted."""
    folder = Path(run.recipe.output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        log.write(time.strftime("%Y-%m-%d %H:%M:%S begun\n"))
        try:
            work(run)
        except (InterruptedRun, KeyboardInterrupt):
            return None
        except UserError as error:
            _note_failure(run, str(error))
            return str(error)
        except Exception as error:
            _note_failure(run, traceback.format_exc())
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
    (folder / FAILED_FILE).unlink(missing_ok=True)
    return ""


def _note_failure(run: StudyRun, text: str) -> None:
    folder = Path(run.recipe.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED_FILE).write_text(text.rstrip() + "\n")


def _cores() -> int:
    """What this process may use; whoever sets OMP_NUM_THREADS knows what else the machine has to do."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
