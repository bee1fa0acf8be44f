"""A command that is killed at drawn moments and given again until it is done; nobody else's process is touched."""

import csv
import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import yaml

Start = Callable[[Path], int]


def family(pid: int) -> list[int]:
    """A process and all that came of it, its own number first."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it is gone
        children = []
    return [pid, *(member for child in children for member in family(int(child)))]


def spawn(command: list[str]) -> int:
    """Start a program that says nothing and computes with one thread."""
    silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in (0, 1, 2)]
    return os.posix_spawn(command[0], command, {**os.environ, "OMP_NUM_THREADS": "1"}, file_actions=silent)


def soak(
    start: Start, compare: Callable[[Path], None], home: Path, kills: int, longest: float, states: bool, alone: bool
) -> str:
    """Give a command, killed again and again, in one new folder after the other until it was killed `kills` times.

    A kill takes all of the command's family, or one member of it, or its own process alone. What lies in the folder
    is whole after each of them.

    Args:
        start: Starts the command in a folder, in a process whose number it gives.
        compare: Called with each folder in which the command came to its end.
        home: Where the folders lie.
        kills: How many.
        longest: A kill comes at most so many seconds after the command began.
        states: Rather after it wrote its first resume state.
        alone: Whether its own process may be killed alone.

    Returns:
        How it went, in one line.
    """
    chance, done, number = random.Random(0), 0, 0
    while done < kills:
        folder, number = home / f"killed{number}", number + 1
        folder.mkdir()
        while not _one_life(start(folder), folder, chance, longest, done >= kills, states, alone):
            done += 1
            check_whole(folder)
        compare(folder)
    return f"{done} kills in {number} folders, equal results"


def _one_life(
    pid: int, folder: Path, chance: random.Random, longest: float, spared: bool, states: bool, alone: bool
) -> bool:
    """Wait for the end of a process, or kill it at a drawn moment; whether it came to its end."""
    before = set(folder.rglob("state-*.pt"))
    end = None if states else time.monotonic()
    delay = chance.uniform(0, longest)
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if end is None and set(folder.rglob("state-*.pt")) - before:
            end = time.monotonic()
        if not spared and end is not None and time.monotonic() > end + delay:
            members = family(pid)
            ways = [members, [chance.choice(members[1:] or members)], *([[pid]] if alone else [])]
            for victim in chance.choice(ways):
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            os.waitpid(pid, 0)  # where another member was killed, the command ends by itself
            return False
        time.sleep(0.005)
    assert (code := os.waitstatus_to_exitcode(ended[1])) == 0, f"{folder}: ended with {code}"
    return True


def check_whole(folder: Path) -> None:
    """No file of the folder was half-written, apart from those that say so by their names."""
    readers: dict[str, Callable[[str], object]] = {
        ".json": json.loads,
        ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
        ".yaml": yaml.safe_load,
        ".csv": lambda text: list(csv.reader(text.splitlines(), strict=True)),
    }
    for path in folder.rglob("*"):
        if path.suffix in readers and not path.name.startswith(".") and ".saving-" not in str(path):
            readers[path.suffix](path.read_text())
