"""Runs in processes of their own; the work is stand-ins, since what a run is does not matter here."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from vimoe.errors import UserError
from vimoe.study.grid import StudyRun
from vimoe.study.queue import Outcome
from vimoe.study.workers import run_all
from vimoe.training.interrupt import InterruptedRun, listening
from vimoe.training.recipe import Recipe


def planned(folder: Path, setting: str, needs: str | None = None) -> StudyRun:
    return StudyRun(setting, "", Recipe(output=str(folder / "seed0" / setting)), ("main",), needs)


def stand_in(run: StudyRun) -> None:
    """Does what the run's name says."""
    folder = Path(run.recipe.output)
    if run.setting == "dies":
        os._exit(3)
    if run.setting == "mistaken":
        raise UserError("there is no such thing")
    if run.setting == "breaks":
        raise ValueError("of the inner\nsort")
    if run.setting == "waits":
        with listening() as stop:
            (folder / "begun").touch()
            while not stop.asked:
                time.sleep(0.01)
            (folder / "state").touch()
            raise InterruptedRun("written")
    print("hello from", run.setting)
    (folder / "done").write_text(f"{run.recipe.device} {os.getpid()}")


def test_what_fails_is_told_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    runs = [
        planned(tmp_path, "dies"),
        planned(tmp_path, "lost", needs="seed0/dies"),
        planned(tmp_path, "mistaken"),
        planned(tmp_path, "breaks"),
        planned(tmp_path, "start"),
        planned(tmp_path, "tuned", needs="seed0/start"),
    ]
    for name in ("start", "mistaken"):
        (tmp_path / "seed0" / name).mkdir(parents=True)
        (tmp_path / "seed0" / name / "failed.txt").write_text("last time\n")
    outcomes: list[Outcome] = []
    run_all(runs, stand_in, 1, ["here"], outcomes.append)
    assert [(each.run.setting, each.failure) for each in outcomes] == [
        ("dies", "its process ended with code 3"),
        ("lost", "not begun, since seed0/dies failed"),
        ("mistaken", "there is no such thing"),
        ("breaks", "ValueError: of the inner sort"),
        ("start", ""),
        ("tuned", ""),
    ]
    folder = tmp_path / "seed0"
    assert (folder / "dies" / "failed.txt").read_text() == "its process ended with code 3\n"
    assert (folder / "mistaken" / "failed.txt").read_text() == "there is no such thing\n"
    assert "Traceback" in (folder / "breaks" / "failed.txt").read_text()
    assert not (folder / "start" / "failed.txt").exists()  # it has worked this time
    assert "hello from tuned" in (folder / "tuned" / "log.txt").read_text()
    started, tuned = ((folder / name / "done").read_text().split() for name in ("start", "tuned"))
    assert started == tuned  # one process does one run after the other
    assert started[0] == "here"
    assert int(started[1]) != os.getpid()


def test_runs_are_spread_over_the_devices(tmp_path: Path) -> None:
    runs = [planned(tmp_path, name) for name in "ab"]
    run_all(runs, stand_in, 5, ["first", "second"], lambda _: None)
    devices = [(tmp_path / "seed0" / name / "done").read_text().split()[0] for name in "ab"]
    assert devices == ["first", "second"]


def test_an_interrupted_study_has_its_runs_write_their_state_and_stops(tmp_path: Path) -> None:
    runs = [planned(tmp_path, "waits"), planned(tmp_path, "after")]
    outcomes: list[Outcome] = []

    def interrupt() -> None:
        begun = tmp_path / "seed0" / "waits" / "begun"
        while not begun.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(InterruptedRun, match="the same command goes on"):
        run_all(runs, stand_in, 1, ["here"], outcomes.append)
    assert (tmp_path / "seed0" / "waits" / "state").exists()
    assert not (tmp_path / "seed0" / "waits" / "failed.txt").exists()
    assert not (tmp_path / "seed0" / "after").exists()
    assert outcomes == []
