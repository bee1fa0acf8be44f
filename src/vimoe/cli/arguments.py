"""What the verbs' argument parsers share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from vimoe.errors import UserError

if TYPE_CHECKING:
    from vimoe.tasks.windows import View


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


def add_view(parser: argparse.ArgumentParser) -> None:
    """How a segmentation model looks at images, see `vimoe.tasks.windows.View`."""
    how = parser.add_argument_group("how a segmentation model looks at images")
    how.add_argument("--short-side", type=at_least(1), help="pixels of the shorter side (as in training)")
    how.add_argument("--window", type=at_least(1), help="side of sliding windows in pixels (none: the whole image)")
    how.add_argument("--stride", type=at_least(1), default=341, help="pixels from window to window (341)")
    how.add_argument("--window-batch", type=at_least(1), default=8, help="windows at once (8)")
    how.add_argument("--scales", type=float, nargs="+", default=[1.0], help="sizes to look at in turn (1)")
    how.add_argument("--flips", action="store_true", help="look at mirrored images too")


def chosen_view(args: argparse.Namespace, trained: View) -> View:
    """What the flags of `add_view` say, on top of how the model was trained."""
    view = replace(trained, scales=tuple(args.scales), flips=args.flips, batch=args.window_batch)
    if args.window is not None:
        view = replace(view, window=args.window, stride=args.stride)
    return view if args.short_side is None else replace(view, short_side=args.short_side)
