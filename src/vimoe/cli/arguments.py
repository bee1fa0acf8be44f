"""How every verb declares its flags and refuses wrong ones."""

from __future__ import annotations

import argparse
import math
import reprlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from vimoe.cli import VERBS
from vimoe.errors import UserError, suggest

if TYPE_CHECKING:
    from vimoe.tasks.windows import View


class Parser(argparse.ArgumentParser):
    """argparse with flags in groups, defaults in the help, and a `UserError` for every mistake.

    `more` is what there is to say of a verb beyond its line in `VERBS`.
    """

    def __init__(self, verb: str, more: str = "") -> None:
        about = VERBS[verb]
        super().__init__(
            f"vimoe {verb}",
            f"vimoe {verb} [flags]",
            f"{about[0].upper()}{about[1:]}. {more}",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
        )
        self._group: argparse._ActionsContainer = self
        self._defaults_of_flags: dict[str, Any] = {}

    def value(self, name: str, about: str, **settings: Any) -> None:
        """Declare a value that has no flag; `settings` are those of `add_argument`."""
        self.usage = f"{self.usage} {name.upper()}{'...' if 'nargs' in settings else ''}"
        self._group.add_argument(name, help=about, metavar=name.upper(), **settings)

    def group(self, title: str) -> None:
        """Begin a group of flags."""
        self._group = self.add_argument_group(title)

    def flag(self, name: str, about: str, default: Any = None, short: str = "", **settings: Any) -> None:
        """Declare a flag of the current group.

        Args:
            name: With its dashes.
            about: The help; the default is added to it.
            default: A bool makes a switch, by default one with a `--no-` form.
            short: Another name.
            settings: Those of `add_argument`.
        """
        shown = default
        if isinstance(default, bool):
            settings.setdefault("action", argparse.BooleanOptionalAction)
            shown = "on" if default else None
        elif not {"choices", "action"} & settings.keys():
            settings.setdefault("metavar", name.rpartition("-")[2].upper())
        if isinstance(default, list):
            shown = " ".join(map(str, default))
        about += "" if shown in (None, "", {}) else f" (default: {shown})"
        self._group.add_argument(*filter(None, (short, name)), help=about.replace("%", "%%"), **settings)
        self._defaults_of_flags[name.strip("-").replace("-", "_")] = default

    def shared(self, *names: str) -> None:
        """Declare flags that mean the same in several verbs."""
        for name in names:
            self.flag(name, **SHARED[name])

    def given(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What the arguments say, by name, without the defaults."""
        known, rest = self.parse_known_args(list(arguments))
        if rest and not rest[0].startswith("-"):
            self.error(f"unexpected value {rest[0]!r}")
        if rest:
            wrong = rest[0].partition("=")[0]
            flags = [f"--{name.replace('_', '-')}" for name in self._defaults_of_flags]
            raise UserError(f"unknown flag {wrong!r}{suggest(wrong, flags)}")
        return vars(known)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """What the arguments say, and the defaults."""
        return argparse.Namespace(**{**self._defaults_of_flags, **self.given(arguments)})

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UserError`."""
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def note(self, line: str) -> None:
        """Say something on stderr that stops nothing."""
        print(f"{self.prog}: {line}", file=sys.stderr)


def at_least(lowest: int) -> Callable[[str], int]:
    """A type for whole numbers from `lowest` on."""

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {value}")
        return value

    return whole_number


def number(holds: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """A type for finite numbers of which something `holds`; `wanted` says so in words."""

    def finite(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
        return value

    return finite


SHARED: dict[str, dict[str, Any]] = {
    "--data-dir": {"about": "the folder of images, where it is not the run's own"},
    "--batch-size": {"about": "images at once", "default": 64, "type": at_least(1)},
    "--workers": {"about": "processes that decode images", "default": 2, "type": at_least(0)},
    "--device": {"about": "auto, cpu, cuda, or another torch device", "default": "auto"},
}


def mapping(text: str) -> dict[str, Any]:
    """A type for a YAML mapping, such as `{test_family: serif}`."""
    import yaml

    from vimoe.yaml_files import parse_yaml

    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a mapping such as '{{name: value}}', got {reprlib.repr(text)}")
    return value


def add_view(parser: Parser) -> None:
    """How a segmentation model looks at images, see `vimoe.tasks.windows.View`."""
    parser.group("inference of a segmentation model")
    parser.flag(
        "--short-side", "resize the shorter side to this many pixels (default: as in training)", type=at_least(1)
    )
    parser.flag("--window", "side of the sliding windows in pixels (default: the whole image)", type=at_least(1))
    parser.flag("--stride", "pixels between windows", 341, type=at_least(1))
    parser.flag("--window-batch", "windows at once", 8, type=at_least(1))
    parser.flag("--scales", "average over the image at these scales", [1.0], type=float, nargs="+")
    parser.flag("--flips", "average with the mirrored image", False)


def chosen_view(args: argparse.Namespace, trained: View) -> View:
    """What the flags of `add_view` say, on top of how the model was trained."""
    view = replace(trained, scales=tuple(args.scales), flips=args.flips, batch=args.window_batch)
    if args.window is not None:
        view = replace(view, window=args.window, stride=args.stride)
    return view if args.short_side is None else replace(view, short_side=args.short_side)
