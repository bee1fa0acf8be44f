"""Runs in processes of their own; what they do is made up, since what a run is does not matter here."""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from vimoe.errors import UserError
from vimoe.study.grid import StudyRun
from vimoe.study.processes import run_all
from vimoe.training.interrupt import InterruptedRun, listening
from vimoe.training.recipe import Recipe


def made_up(folder: Path, setting: str, needs: str | None = None) -> StudyRun:
    return StudyRun(setting, "", Recipe(output=str(folder / "seed0" / setting)), ("main",), needs)


class Parents(torch.utils.data.Dataset[int]):
    """Two items: whose child the loader's worker is."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return os.getppid()


def work(run: StudyRun) -> None:
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
    if run.setting == "slow":
        while not (folder.parent / "other" / "ended").exists():
            time.sleep(0.01)
    if run.setting == "loads":
        parents = list(DataLoader(Parents(), num_workers=1, batch_size=None))
        (folder / "loader").write_text(f"{multiprocessing.get_start_method()} {parents == [os.getpid()] * 2}")
    print("hello from", run.setting)
    (folder / "done").write_text(f"{run.recipe.device} {os.getpid()} {torch.get_num_threads()}")


def test_what_fails_is_reported_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    runs = [
        made_up(tmp_path, "dies"),
        made_up(tmp_path, "lost", needs="seed0/dies"),
        made_up(tmp_path, "lost-planned", needs="seed0/lost"),
        made_up(tmp_path, "mistaken"),
        made_up(tmp_path, "breaks"),
        made_up(tmp_path, "start"),
        made_up(tmp_path, "tuned", needs="seed0/start"),
    ]
    for name in ("start", "mistaken", "dies"):
        (tmp_path / "seed0" / name).mkdir(parents=True)
        (tmp_path / "seed0" / name / "failed.txt").write_text("last time\n")
    outcomes: dict[str, str] = {}
    run_all(runs, work, 1, ["here"], lambda run, failure: outcomes.update({run.setting: failure}))
    assert list(outcomes.items()) == [
        ("dies", "its process ended with code 3, see log.txt"),
        ("lost", "not begun, since seed0/dies failed"),
        ("lost-planned", "not begun, since seed0/lost failed"),
        ("mistaken", "there is no such thing"),
        ("breaks", "ValueError: of the inner sort"),
        ("start", ""),
        ("tuned", ""),
    ]
    folder = tmp_path / "seed0"
    assert (folder / "dies" / "failed.txt").read_text() == "its process ended with code 3, see log.txt\n"
    assert (folder / "mistaken" / "failed.txt").read_text() == "there is no such thing\n"
    assert "Traceback" in (folder / "breaks" / "failed.txt").read_text()
    assert not (folder / "start" / "failed.txt").exists()  # it has worked this time
    assert "hello from tuned" in (folder / "tuned" / "log.txt").read_text()
    started, tuned = ((folder / name / "done").read_text().split() for name in ("start", "tuned"))
    assert len({started[1], tuned[1], str(os.getpid())}) == 3  # each has a process of its own
    assert started[0] == "here"


def test_a_run_waits_for_what_it_needs_and_others_go_before(tmp_path: Path) -> None:
    names = {"slow": None, "tuned": "seed0/slow", "other": None, "done-before": "seed0/start"}
    runs = [made_up(tmp_path, name, needs) for name, needs in names.items()]
    ended: list[str] = []

    def note(run: StudyRun, failure: str) -> None:
        ended.append(run.setting)
        (Path(run.recipe.output) / "ended").touch()  # `slow` goes on when `other` has been reported, not before

    run_all(runs, work, 2, ["here"], note)
    assert set(ended) == set(names)
    assert ended.index("slow") < ended.index("tuned")
    assert ended[0] == "other"


def test_runs_are_spread_over_the_devices_and_share_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # one number for each level of nesting
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    run_all([made_up(tmp_path, name) for name in "ab"], work, 5, ["first", "second"], lambda *_: None)
    done = [(tmp_path / "seed0" / name / "done").read_text().split() for name in "ab"]
    assert [(device, threads) for device, _, threads in done] == [("first", "2"), ("second", "2")]


def test_a_loader_starts_its_workers_as_in_a_run_by_hand(tmp_path: Path) -> None:
    run_all([made_up(tmp_path, "loads")], work, 1, ["cpu"], lambda *_: None)
    method = multiprocessing.get_start_method()
    assert (tmp_path / "seed0" / "loads" / "loader").read_text() == f"{method} {method == 'fork'}"


def test_an_interrupted_study_has_its_runs_write_their_state_and_stops(tmp_path: Path) -> None:
    runs = [made_up(tmp_path, "waits"), made_up(tmp_path, "after")]
    outcomes: dict[str, str] = {}

    def interrupt() -> None:
        begun = tmp_path / "seed0" / "waits" / "begun"
        while not begun.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(InterruptedRun, match="the same command goes on"):
        run_all(runs, work, 1, ["here"], lambda run, failure: outcomes.update({run.setting: failure}))
    assert (tmp_path / "seed0" / "waits" / "state").exists()
    assert not (tmp_path / "seed0" / "waits" / "failed.txt").exists()
    assert not (tmp_path / "seed0" / "after").exists()
    assert outcomes == {}


def test_a_run_waits_until_the_process_of_a_killed_study_lets_go_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "seed0" / "a"
    folder.mkdir(parents=True)
    begun_too_early: list[bool] = []
    lock = (folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def let_go() -> None:
        while not (folder / "log.txt").exists():
            time.sleep(0.02)
        time.sleep(0.5)
        begun_too_early.append((folder / "done").exists())
        lock.close()

    threading.Thread(target=let_go, daemon=True).start()
    outcomes: dict[str, str] = {}
    run_all([made_up(tmp_path, "a")], work, 1, ["here"], lambda run, failure: outcomes.update({run.setting: failure}))
    assert outcomes == {"a": ""}
    assert begun_too_early == [False]


def test_a_study_that_is_killed_leaves_no_run_behind(tmp_path: Path) -> None:
    folder = tmp_path / "seed0" / "waits"
    code = (
        "from pathlib import Path; from tests.study.test_processes import made_up, work\n"
        "from vimoe.study.processes import run_all\n"
        f"run_all([made_up(Path({str(tmp_path)!r}), 'waits')], work, 1, ['here'], print)"
    )
    study = subprocess.Popen([sys.executable, "-c", code])
    try:
        while not (folder / "begun").exists():
            assert study.poll() is None
            time.sleep(0.02)
    finally:
        study.kill()
        study.wait()
    for _ in range(1000):
        if (folder / "state").exists():
            break
        time.sleep(0.02)
    assert (folder / "state").exists()
