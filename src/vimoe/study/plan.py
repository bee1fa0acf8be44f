"""From a study file to the runs it asks for: no torch, nothing is read but the file itself.

    base:  recipe keys of every run, or the path of a recipe (beside the study file)
    start: recipe keys of the pretraining that every seed runs once; the fine-tunings start from its model
    seeds: [0, 1, 2]
    arms:
      - {name: main, last: [0, 2, 4], num_experts: [2, 8], shared_expert: [true, false]}

An arm is a grid: every recipe key in it is a factor, with one value or a list of them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from vimoe.errors import UserError, first_line
from vimoe.training.recipe import Recipe, recipe_parser

Settings = dict[str, Any]

START = "start"
_KEYS = ("base", "start", "seeds", "arms")
# The study decides these itself; they are in no run's name.
_RESERVED = ("seed", "output", "device")
# What makes a model an MoE model.
_MOE_FIELDS = (
    *("last", "num_experts", "top_k", "shared_expert", "routing", "preset", "router_noise", "balance_weight"),
    "baseline",
)
# What the data is and what the dense model is: a pretraining follows its fine-tunings in these.
DATA_AND_MODEL = (
    *("task", "dataset", "data_dir", "train_split", "val_split", "test_split", "reduce_zero_label", "in_memory"),
    *("val_share", "img_size", "model", "model_args", "pretrained", "decoder", "pos_embed_std"),
)
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}


@dataclass(frozen=True)
class Study:
    """A study file, read but not yet laid out.

    Attributes:
        base: Recipe keys of every run.
        start: Recipe keys of each seed's pretraining over those of `base`; None where there is none.
        seeds: One repetition of everything a seed.
        arms: By name, the factors of a grid with their values.
        output: The study's folder.
    """

    base: Settings
    start: Settings | None
    seeds: tuple[int, ...]
    arms: Mapping[str, Mapping[str, tuple[Any, ...]]]
    output: Path


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        setting: What it is, the same for all seeds; no two settings share a name.
        recipe: Its resolved recipe, its folder among it.
        arms: The arms that ask for it.
        needs: Name of the run whose model it starts from, None for none.
    """

    setting: str
    recipe: Recipe
    arms: tuple[str, ...]
    needs: str | None = None

    @property
    def name(self) -> str:
        """The run's folder inside the study's."""
        return f"seed{self.recipe.seed}/{self.setting}"


def read_study(path: Path, output: Path, **instead: Any) -> Study:
    """Read a study file.

    Args:
        path: The file.
        output: Where the runs go.
        instead: Recipe keys that win over the file's base, such as `device`.

    Raises:
        UserError: The file cannot be read, or a key or value in it is wrong.
    """
    content = _read_yaml(path)
    _check_keys(content, _KEYS, f"in {path}")
    base = content.get("base") or {}
    if isinstance(base, str):
        base = _read_yaml(path.parent / base)
    start = content.get("start")
    for name, settings in (("base", base), ("start", start or {})):
        _check_recipe_keys(settings, f"{name} of {path}", ("seed", "output"))
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise UserError(f"seeds of {path} must be a list of whole numbers from 0, got {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds of {path} name one seed twice: {seeds}")
    arms = _read_arms(content.get("arms"), path)
    if start is not None and any("initial_checkpoint" in settings for settings in (base, *arms.values())):
        raise UserError(f"{path} has both start and initial_checkpoint: the fine-tunings start from one of them")
    return Study({**base, **instead}, start, tuple(seeds), arms, output)


def plan_runs(study: Study) -> list[PlannedRun]:
    """All runs of a study, each once, seed by seed and a pretraining before what starts from it.

    Settings that describe the same model are one run: without MoE layers (`last: 0`) the other MoE settings say
    nothing, and a run that several arms ask for belongs to all of them.

    Raises:
        UserError: A value is not what the recipe key takes.
    """
    base = _recipe(study.base, "base")
    grid = [(arm, factors) for arm in study.arms for factors in _combinations(study.arms[arm])]
    runs: dict[str, PlannedRun] = {}
    for seed in study.seeds:
        for arm, factors in grid:
            where = f"arm {arm!r}"
            recipe = _canonical(_recipe({**study.base, **factors, "seed": seed}, where))
            setting, needs = setting_name(recipe, base), None
            if study.start is not None:
                shared = {key: value for key, value in factors.items() if key in DATA_AND_MODEL}
                first = _recipe({**study.base, **shared, **study.start, "seed": seed}, "start")
                usual = _recipe({**study.base, **study.start}, "start")
                run = _planned(study, _start_name(first, usual), first, arm, None, runs)
                needs = run.name
                recipe = replace(recipe, initial_checkpoint=str(Path(run.recipe.output) / "model"))
            _planned(study, setting, recipe, arm, needs, runs)
    return sorted(runs.values(), key=lambda run: (study.seeds.index(run.recipe.seed), not is_start(run)))


def setting_name(recipe: Recipe, base: Recipe) -> str:
    """What a run is, as a folder's name: `dense`, `N8-L2-shared`, `wide2-L2`, `N8-L2-token-lr=0.001`.

    The MoE settings are told in words; of the others those that differ from the base recipe, a short check sum
    standing for what makes no good file name.
    """
    words = ["dense"]
    if recipe.last and recipe.baseline:
        words = [f"{recipe.baseline}{recipe.top_k + recipe.shared_expert}", f"L{recipe.last}"]
    elif recipe.last:
        words = [f"N{recipe.num_experts}", f"L{recipe.last}", *(["shared"] if recipe.shared_expert else [])]
        words += [f"k{recipe.top_k}"] if recipe.top_k > 1 else []
        words += [value for value in (recipe.routing, recipe.preset) if value not in ("image", "preserve")]
    told = ("last", "num_experts", "top_k", "shared_expert", "routing", "preset", "baseline")
    like = _canonical(replace(base, last=recipe.last, baseline=recipe.baseline))
    return "-".join([*words, *_differences(recipe, like, told)])


def differing_fields(runs: list[PlannedRun]) -> tuple[str, ...]:
    """The recipe keys that not all fine-tunings share, in the recipe's order."""
    recipes = [asdict(run.recipe) for run in runs if not is_start(run)]
    return tuple(
        key
        for key in _DEFAULTS
        if key not in (*_RESERVED, "initial_checkpoint") and any(recipe[key] != recipes[0][key] for recipe in recipes)
    )


def is_start(run: PlannedRun) -> bool:
    """Whether a run is a pretraining that others start from."""
    return run.setting.split("-")[0] == START


def _planned(
    study: Study, setting: str, recipe: Recipe, arm: str, needs: str | None, runs: dict[str, PlannedRun]
) -> PlannedRun:
    """The run of this setting and seed, noted down as one that `arm` asks for."""
    run = PlannedRun(setting, recipe, (arm,), needs)
    run = replace(run, recipe=replace(recipe, output=str(study.output / run.name)))
    known = runs.get(run.name)
    if known is not None:
        assert known.recipe == run.recipe, f"two runs are called {run.name}"
        run = replace(known, arms=tuple(dict.fromkeys((*known.arms, arm))))
    runs[run.name] = run
    return run


def _canonical(recipe: Recipe) -> Recipe:
    """One recipe for all that describe the same model: what a model does not depend on has its default."""
    width = recipe.top_k + recipe.shared_expert
    default = {key: _DEFAULTS[key] for key in _MOE_FIELDS}
    if recipe.last == 0 or recipe.baseline == "dense" or (recipe.baseline == "wide" and width == 1):
        return replace(recipe, **default)
    if recipe.baseline == "wide":  # of the MoE settings only the number of FFNs that are active together counts
        return replace(recipe, **{**default, "last": recipe.last, "baseline": "wide", "top_k": width - 1})
    return recipe


def _start_name(recipe: Recipe, usual: Recipe) -> str:
    return "-".join([START, *_differences(recipe, usual)])


def _differences(recipe: Recipe, base: Recipe, told: tuple[str, ...] = ()) -> list[str]:
    """The other settings in which a recipe differs, as words of a file name."""
    mine, theirs = asdict(recipe), asdict(base)
    keys = [key for key in mine if key not in (*_RESERVED, *told) and mine[key] != theirs[key]]
    plain = [f"{key}={mine[key]}" for key in keys if re.fullmatch(r"[\w.+-]{1,24}", str(mine[key]))]
    odd = {key: mine[key] for key in keys if not re.fullmatch(r"[\w.+-]{1,24}", str(mine[key]))}
    if not odd:
        return plain
    return [*plain, hashlib.sha256(json.dumps(odd, sort_keys=True).encode()).hexdigest()[:6]]


def _combinations(factors: Mapping[str, tuple[Any, ...]]) -> Iterator[Settings]:
    for values in product(*factors.values()):
        yield dict(zip(factors, values, strict=True))


def _recipe(settings: Settings, where: str) -> Recipe:
    try:
        values = recipe_parser().parse_object(settings).as_dict()
        values.pop("config", None)
        return Recipe(**values)
    except (UserError, TypeError) as error:  # TypeError: null for what is compared with a number
        raise UserError(f"{where}: {first_line(error)}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, got {type(content).__name__}")
    return content


def _read_arms(arms: Any, path: Path) -> dict[str, dict[str, tuple[Any, ...]]]:
    if not isinstance(arms, list) or not arms or not all(isinstance(arm, dict) for arm in arms):
        raise UserError(f"arms of {path} must be a list of grids such as {{name: main, last: [0, 2], num_experts: 8}}")
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    for arm in arms:
        name = arm.get("name")
        if not isinstance(name, str) or not name or ";" in name or name in found:
            raise UserError(f"every arm of {path} needs a name of its own, without semicolons, got {name!r}")
        factors = {key: value for key, value in arm.items() if key != "name"}
        _check_recipe_keys(factors, f"arm {name!r} of {path}", _RESERVED)
        found[name] = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in factors.items()}
        if empty := [key for key, values in found[name].items() if not values]:
            raise UserError(f"arm {name!r} of {path}: {empty[0]} has no value")
    return found


def _check_recipe_keys(settings: Any, where: str, reserved: tuple[str, ...]) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{where} must hold recipe keys and values, got {settings!r}")
    for key in reserved:
        if key in settings:
            raise UserError(f"{where}: {key} is the study's to decide{', list it in seeds' if key == 'seed' else ''}")
    _check_keys(settings, tuple(_DEFAULTS), f"in {where}")


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; there is {', '.join(known)}"
            raise UserError(f"unknown key {key!r} {where}{hint}")
