"""The study file: read and checked, no torch.

    base:  recipe keys of every run, or the path of a recipe (beside the study file)
    start: recipe keys of the pretraining that every seed runs once; the fine-tunings start from its model
    seeds: [0, 1, 2]
    variants:
      - {name: main, last: [0, 2, 4], num_experts: [2, 8], shared_expert: [true, false]}
    planned: [N8-L4-shared]

A variant is a grid: every recipe key in it is a factor, with one value or a list of them. Under `planned` stand
settings of the variants, as `--dry-run` calls them: each of their runs is analyzed, pruned as its plan says, and
recovered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vimoe.errors import UserError, suggest
from vimoe.files import read_yaml
from vimoe.training.recipe import Recipe

Settings = dict[str, Any]

_KEYS = ("base", "start", "seeds", "variants", "planned")
# The study decides these itself.
RESERVED = ("seed", "output", "device")


@dataclass(frozen=True)
class Study:
    """A study file, read but not yet laid out.

    Attributes:
        base: Recipe keys of every run.
        start: Recipe keys of each seed's pretraining over those of `base`; None where there is none.
        seeds: One repetition of everything a seed.
        variants: By name, the factors of a grid with their values.
        output: The study's folder.
        planned: The settings whose runs are analyzed, pruned and recovered.
    """

    base: Settings
    start: Settings | None
    seeds: tuple[int, ...]
    variants: Mapping[str, Mapping[str, tuple[Any, ...]]]
    output: Path
    planned: tuple[str, ...] = ()


def read_study(path: Path, output: Path, **instead: Any) -> Study:
    """Read a study file.

    Args:
        path: The file.
        output: Where the runs go.
        instead: Recipe keys that win over the file's base, such as `device`.

    Raises:
        UserError: The file cannot be read, or a key or value in it is wrong.
    """
    content = read_yaml(path)
    _check_keys(content, _KEYS, f"in {path}")
    base = content.get("base") or {}
    if isinstance(base, str):
        base = read_yaml(path.parent / base)
    start = content.get("start")
    for name, settings in (("base", base), ("start", start or {})):
        _check_recipe_keys(settings, f"{name} of {path}", ("seed", "output"))
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise UserError(f"seeds of {path} must be a list of whole numbers from 0, got {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds of {path} name one seed twice: {seeds}")
    variants = _read_variants(content.get("variants"), path)
    planned = content.get("planned") or []
    if not isinstance(planned, list) or not all(isinstance(setting, str) for setting in planned):
        raise UserError(f"planned of {path} must be a list of settings such as [N8-L2-shared], got {planned!r}")
    if start is not None and any("initial_checkpoint" in settings for settings in (base, *variants.values())):
        raise UserError(f"{path} has both start and initial_checkpoint: the fine-tunings start from one of them")
    return Study({**base, **instead}, start, tuple(seeds), variants, output, tuple(dict.fromkeys(planned)))


def _read_variants(variants: Any, path: Path) -> dict[str, dict[str, tuple[Any, ...]]]:
    if not isinstance(variants, list) or not variants or not all(isinstance(variant, dict) for variant in variants):
        raise UserError(
            f"variants of {path} must be a list of grids such as {{name: main, last: [0, 2], num_experts: 8}}"
        )
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for variant in variants:
        name = variant.get("name")
        if not isinstance(name, str) or not name or ";" in name or name in found:
            raise UserError(f"every variant of {path} needs a name of its own, without semicolons, got {name!r}")
        factors = {key: value for key, value in variant.items() if key != "name"}
        _check_recipe_keys(factors, f"variant {name!r} of {path}", RESERVED)
        found[name] = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in factors.items()}
        if empty := [key for key, values in found[name].items() if not values]:
            raise UserError(f"variant {name!r} of {path}: {empty[0]} has no value")
    return found


def _check_recipe_keys(settings: Any, where: str, reserved: tuple[str, ...]) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{where} must hold recipe keys and values, got {settings!r}")
    for key in reserved:
        if key in settings:
            raise UserError(f"{where}: {key} is the study's to decide{', list it in seeds' if key == 'seed' else ''}")
    _check_keys(settings, tuple(field.name for field in fields(Recipe)), f"in {where}")


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"unknown key {key!r} {where}{suggest(str(key), known)}")
