"""What the verbs' argument parsers share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from vimoe.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are `UserError`s, so that a mistake is one line everywhere."""

    def __init__(self, verb: str, about: str) -> None:
        super().__init__(f"vimoe {verb}", description=about, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def note(self, line: str) -> None:
        """Say something on stderr that stops nothing."""
        print(f"{self.prog}: {line}", file=sys.stderr)


def at_least(lowest: int) -> Callable[[str], int]:
    """A type for whole numbers from `lowest` on."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {value}")
        return value

    return whole_number
