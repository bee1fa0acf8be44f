"""Ctrl-C and SIGTERM: finish the step, write the state, stop; a second one stops at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class InterruptedRun(Exception):  # noqa: N818  (no error: the run can go on)
    """A run that was asked to stop and has written its state."""


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop.

    Attributes:
        asked: A signal has come.
        at_once: Nothing has to be finished first: a signal raises `InterruptedRun` where it meets the program.
    """

    asked: bool = False
    at_once: bool = False


@contextmanager
def listening(*, at_once: bool = False) -> Iterator[StopRequest]:
    """Catch the first SIGINT or SIGTERM inside the block; a no-op outside the main thread.

    Whoever can finish a step first sets the request's `at_once` to false.
    """
    request = StopRequest(at_once=at_once)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.at_once:
            raise InterruptedRun("stopped before training began; the same command starts again")
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
