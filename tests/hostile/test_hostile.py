"""Every case ends in an answer or in one clear line; nothing foreign runs. `make hostile` prints the table."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from tests.hostile import cases, file_cases
from tests.hostile.cases import Case
from tests.hostile.fork import vimoe
from tests.hostile.world import World

GROUPS = (
    *(cases.flags, cases.recipes, cases.studies, file_cases.images, file_cases.folders, file_cases.class_names),
    *(file_cases.model_folders, file_cases.states, file_cases.plans, file_cases.tars, file_cases.masks),
    *(cases.signals, cases.full_disk),
)
ALL = list(chain.from_iterable(group() for group in GROUPS))
A_FEW = 40  # in `make test`: other ones each time the list changes, the same ones else


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        yield World(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


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


@pytest.mark.hostile
def test_a_sample_of_hostile_cases_ends_in_one_line(world: World) -> None:
    sample = random.Random(0).sample(ALL, A_FEW)
    faults = {f"{case.group}: {case.name}": found for case in sample if (found := fault(case, world))}
    assert not faults


@pytest.mark.hostile
def test_every_hostile_case_ends_in_one_line(world: World) -> None:
    tried: dict[str, int] = {}
    faults: dict[str, list[str]] = {}
    for case in ALL:
        tried[case.group] = tried.get(case.group, 0) + 1
        if found := fault(case, world):
            faults.setdefault(case.group, []).append(f"{case.name}: {found}")
            print(f"\n  {case.group}: {case.name}: {found}", flush=True)
    print("\n\n| group | tried | held |\n| --- | ---: | ---: |")
    for group, count in tried.items():
        print(f"| {group} | {count} | {count - len(faults.get(group, ()))} |")
    print(f"| all | {sum(tried.values())} | {sum(tried.values()) - sum(map(len, faults.values()))} |")
    assert not faults
