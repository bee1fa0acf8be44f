"""The study file: read and checked, no torch.

    base:  recipe keys of every run, or the path of a recipe (beside the study file)
    start: recipe keys of the pretraining that every seed runs once; the fine-tunings start from its model
    seeds: [0, 1, 2]
    variants:
      - {name: main, last: [0, 2, 4], num_experts: [2, 8], shared_expert: [true, false]}
    planned: [N8-L4-shared]

A variant is a grid: every recipe key in it is a factor, with one value or a list of them. `planned` lists settings by
the names that `--dry-run` shows: each of their runs is analyzed, pruned as its plan says, and recovered.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from vimoe.errors import UserError, suggest
from vimoe.yaml_files import read_yaml

Settings = dict[str, Any]

_KEYS = ("base", "start", "seeds", "variants", "planned")
# The study decides these itself.
RESERVED = ("seed", "output", "device")


@dataclass(frozen=True)
class Study:
    """A study file, see above; `points` are all combinations of factors, each with the name of its variant."""

    base: Settings
    start: Settings | None
    seeds: tuple[int, ...]
    points: tuple[tuple[str, Settings], ...]
    output: Path
    planned: tuple[str, ...] = ()


def read_study(path: Path, output: Path, **instead: Any) -> Study:
    """Read a study file; whether its recipe keys and their values are right is seen when its runs are listed.

    Recipe keys in `instead`, such as `device`, win over the file's base.

    Raises UserError if the file cannot be read, or something in it is wrong.
    """
    content = read_yaml(path)
    for key in content:
        if key not in _KEYS:
            raise UserError(f"unknown key {key!r} in {path}{suggest(str(key), _KEYS)}")
    base, start = content.get("base") or {}, content.get("start")
    if isinstance(base, str):
        base = read_yaml(path.parent / base)
    _check(base, f"base of {path}", ("seed", "output"))
    _check({} if start is None else start, f"start of {path}", ("seed", "output"))
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise UserError(f"seeds of {path} must be a list of whole numbers from 0, got {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds of {path} name one seed twice: {seeds}")
    points = _read_points(content.get("variants"), path)
    planned = content.get("planned") or []
    if not isinstance(planned, list) or not all(isinstance(setting, str) for setting in planned):
        raise UserError(f"planned of {path} must be a list of settings such as [N8-L2-shared], got {planned!r}")
    if start is not None and any("initial_checkpoint" in settings for settings in (base, *(s for _, s in points))):
        raise UserError(f"{path} has both start and initial_checkpoint: the fine-tunings start from one of them")
    return Study({**base, **instead}, start, tuple(seeds), tuple(points), output, tuple(dict.fromkeys(planned)))


def _read_points(variants: Any, path: Path) -> list[tuple[str, Settings]]:
    if not isinstance(variants, list) or not variants or not all(isinstance(variant, dict) for variant in variants):
        raise UserError(
            f"variants of {path} must be a list of grids such as {{name: main, last: [0, 2], num_experts: 8}}"
        )
    points = []
    names = [variant.get("name") for variant in variants]
    for name, variant in zip(names, variants, strict=True):
        if not isinstance(name, str) or not name.strip() or ";" in name or names.count(name) > 1:
            raise UserError(f"every variant of {path} needs a name of its own, without semicolons, got {name!r}")
        where = f"variant {name!r} of {path}"
        factors = {key: value if isinstance(value, list) else [value] for key, value in variant.items()}
        del factors["name"]
        _check(factors, where, RESERVED)
        if empty := [key for key, values in factors.items() if not values]:
            raise UserError(f"{where}: {empty[0]} has no value")
        points += [(name, dict(zip(factors, values, strict=True))) for values in product(*factors.values())]
    return points


def _check(settings: Any, where: str, reserved: tuple[str, ...]) -> None:
    if not isinstance(settings, Mapping):
        raise UserError(f"{where} must hold recipe keys and values, got {settings!r}")
    for key in reserved:
        if key in settings:
            raise UserError(f"{where}: {key} is the study's to decide{', list it in seeds' if key == 'seed' else ''}")
    for key, value in settings.items():
        try:
            json.dumps(value, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:  # a date, a set, bytes; a loop; too deep
            raise UserError(f"{where}: {key} must be made of numbers, text, lists and mappings: {error}") from error
