"""Which run of a study may start next, and which never can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vimoe.study.grid import StudyRun


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        run: The run.
        failure: One line on what went wrong, empty where nothing did.
    """

    run: StudyRun
    failure: str


@dataclass
class Queue:
    """What is left of a study: which run may start next, and which never can.

    Attributes:
        waiting: Runs not begun, in the order of the plan.
        unfinished: Names of the runs that others must wait for.
    """

    waiting: list[StudyRun]
    unfinished: set[str]

    @classmethod
    def of(cls, runs: Sequence[StudyRun]) -> Queue:
        """A queue of these runs; what they need and is not among them has been done."""
        return cls(list(runs), {run.name for run in runs})

    def take(self) -> StudyRun | None:
        """The first run that waits for nothing, None where there is none now."""
        for run in self.waiting:
            if run.needs not in self.unfinished:
                self.waiting.remove(run)
                return run
        return None

    def note(self, outcome: Outcome) -> list[Outcome]:
        """Note down a run's end; gives it and, where it failed, those that needed it."""
        if not outcome.failure:
            self.unfinished.discard(outcome.run.name)
            return [outcome]
        ended, failed = [outcome], {outcome.run.name}
        for run in list(self.waiting):  # what is needed comes before what needs it
            if run.needs in failed:
                self.waiting.remove(run)
                failed.add(run.name)
                ended.append(Outcome(run, f"not begun, since {outcome.run.name} failed"))
        return ended
