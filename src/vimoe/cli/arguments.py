"""What the verbs' argument parsers share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vimoe.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are `UserError`s, so that a mistake is one line everywhere."""

    def __init__(self, verb: str, about: str) -> None:
        super().__init__(f"vimoe {verb}", description=about, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")
