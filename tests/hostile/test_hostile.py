"""Every case ends in an answer or in one clear line; nothing foreign runs. `make hostile` prints the table."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import cases, file_cases
from tests.hostile.cases import Case
from tests.hostile.fork import vimoe
from tests.hostile.world import World

SOURCES = (
    *(cases.flags, cases.recipes, cases.studies, file_cases.images, file_cases.folders, file_cases.class_names),
    *(file_cases.model_folders, file_cases.states, file_cases.plans, file_cases.tars, file_cases.masks),
    *(cases.signals, cases.full_disk),
)
GROUPS: dict[str, list[Case]] = {}
for case in (case for source in SOURCES for case in source()):
    GROUPS.setdefault(case.group, []).append(case)
# In `make test`: so many of each group that takes tenths of a second a case and hangs on no moment in time.
A_FEW, QUICK = 7, [group for group in GROUPS if group not in ("class names", "plans", "signals", "full disk")]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        yield World(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def held() -> Iterator[dict[str, int]]:
    """By group, how many cases held; the table is printed at the end."""
    counts: dict[str, int] = {}
    yield counts
    print("\n\n| group | tried | held |\n| --- | ---: | ---: |")
    for group, count in counts.items():
        print(f"| {group} | {len(GROUPS[group])} | {count} |")
    print(f"| all | {sum(len(GROUPS[group]) for group in counts)} | {sum(counts.values())} |")


def fault(case: Case, world: World) -> str:
    """What went wrong with a case, empty if nothing did."""
    folder = Path(tempfile.mkdtemp(prefix="case-"))
    try:
        commands = case.prepare(world, folder)
        for number, arguments in enumerate(commands):
            outcome = vimoe(arguments, folder, **(case.limits if number == len(commands) - 1 else {}))
            if outcome.fault:
                return outcome.fault
            if (folder / "owned").exists():
                return "foreign code ran"
            if outcome.code == 2 and number == 0:
                return ""  # refused; what would come next has nothing to work on
        return "it was accepted" if case.refused and outcome.code == 0 else ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def faults(sample: list[Case], world: World) -> list[str]:
    """A line for each case that did not hold, printed as it is found."""
    found = []
    for case in sample:
        if wrong := fault(case, world):
            found.append(f"{case.group}: {case.name}: {wrong}")
            print(f"\n  {found[-1]}", flush=True)
    return found


def test_a_sample_of_hostile_cases_ends_in_one_line(world: World) -> None:
    chance = random.Random(0)
    sample = [case for group in QUICK for case in chance.sample(GROUPS[group], min(A_FEW, len(GROUPS[group])))]
    assert not faults(sample, world)


@pytest.mark.hostile
@pytest.mark.parametrize("group", GROUPS)
def test_every_hostile_case_ends_in_one_line(group: str, world: World, held: dict[str, int]) -> None:
    found = faults(GROUPS[group], world)
    held[group] = len(GROUPS[group]) - len(found)
    assert not found
