"""From a study to its runs: which there are, what each is called, which can be shared. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from vimoe.errors import UserError, suggest
from vimoe.study.recovery import recovery_epochs
from vimoe.study.study_file import RESERVED, Settings, Study
from vimoe.training.recipe import Recipe, make_recipe

START, PLANNED = "start", "planned"
# What makes a model an MoE model.
MOE_FIELDS = (
    *("last", "num_experts", "top_k", "shared_expert", "routing", "preset", "router_noise", "balance_weight"),
    "baseline",
)
# What the data is and what the dense model is: a pretraining follows its fine-tunings in these.
DATA_AND_MODEL = (
    *("task", "dataset", "dataset_args", "data_dir", "train_split", "val_split", "test_split", "reduce_zero_label"),
    *("in_memory", "short_side", "per_class", "val_share", "img_size", "model", "model_args", "pretrained", "decoder"),
    "pos_embed_std",
)
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        setting: What it is, the same for all seeds; no two settings share a name.
        qualifier: The part of `setting` beyond N, L and the shared expert, empty where there is none.
        recipe: Its resolved recipe, its folder among it.
        variants: The variants that ask for it.
        needs: Name of the run whose model it starts from, None for none.
        recovers: 0 for a run that is trained. Else the epochs of recovery of what its plan makes of the run that it
            needs; the recipe then is that run's, with the epochs of both.
    """

    setting: str
    qualifier: str
    recipe: Recipe
    variants: tuple[str, ...]
    needs: str | None = None
    recovers: int = 0

    @property
    def name(self) -> str:
        """The run's folder inside the study's."""
        return f"seed{self.recipe.seed}/{self.setting}"


def plan_runs(study: Study) -> list[StudyRun]:
    """All runs of a study, each once, seed by seed and a pretraining before what starts from it.

    Settings that describe the same model are one run: without MoE layers (`last: 0`) the other MoE settings say
    nothing, and a run that several variants ask for belongs to all of them.

    Raises:
        UserError: A value is not what the recipe key takes, or what is to be planned is no run with MoE layers.
    """
    base = _recipe(study.base, "base")
    usual = None if study.start is None else _recipe({**study.base, **study.start}, "start")
    grid = [
        _grid_point(study, variant, factors, usual)
        for variant in study.variants
        for factors in _grid(study.variants[variant])
    ]
    runs: dict[str, StudyRun] = {}
    for seed in study.seeds:
        for variant, recipe, first in grid:
            named, needs = name_setting(recipe, base), None
            recipe = replace(recipe, seed=seed)
            if usual is not None and first is not None:
                other = _differences(first, usual)
                name = "-".join([START, *other]), "-".join(other)
                start = _noted(study, name, replace(first, seed=seed), variant, None, runs)
                needs = start.name
                recipe = replace(recipe, initial_checkpoint=str(Path(start.recipe.output) / "model"))
            _noted(study, named, recipe, variant, needs, runs)
    for seed in study.seeds:
        for setting in study.planned:
            _note_by_plan(study, seed, setting, runs)
    return sorted(runs.values(), key=lambda run: (study.seeds.index(run.recipe.seed), not is_start(run)))


def name_setting(recipe: Recipe, base: Recipe) -> tuple[str, str]:
    """What a run is, as a folder's name, and the part of it that is beyond N, L and the shared expert.

    `dense`, `N8-L2-shared`, `wide2-L2`; `N8-L2-token-lr=0.001` with the qualifier `token-lr=0.001`: of the other keys
    those that differ from the base recipe, a short check sum standing for what makes no good file name.
    """
    words = ["dense"]
    if recipe.last and recipe.baseline:
        words = [f"{recipe.baseline}{recipe.top_k + recipe.shared_expert}", f"L{recipe.last}"]
    elif recipe.last:
        words = [f"N{recipe.num_experts}", f"L{recipe.last}", *(["shared"] if recipe.shared_expert else [])]
    qualifier = []
    if not recipe.baseline:
        qualifier += [f"k{recipe.top_k}"] if recipe.top_k > 1 else []
        qualifier += [value for value in (recipe.routing, recipe.preset) if value not in ("image", "preserve")]
    told = ("last", "num_experts", "top_k", "shared_expert", "routing", "preset", "baseline")
    like = _canonical(replace(base, last=recipe.last, baseline=recipe.baseline))
    qualifier += _differences(recipe, like, told)
    return "-".join([*words, *qualifier]), "-".join(qualifier)


def differing_fields(runs: list[StudyRun]) -> tuple[str, ...]:
    """The recipe keys that not all fine-tunings share, in the recipe's order."""
    recipes = [asdict(run.recipe) for run in runs if not is_start(run)]
    return tuple(
        key
        for key in _DEFAULTS
        if key not in (*RESERVED, "initial_checkpoint") and any(recipe[key] != recipes[0][key] for recipe in recipes)
    )


def is_start(run: StudyRun) -> bool:
    """Whether a run is a pretraining that others start from."""
    return run.setting.split("-")[0] == START


def _noted(
    study: Study,
    named: tuple[str, str],
    recipe: Recipe,
    variant: str,
    needs: str | None,
    runs: dict[str, StudyRun],
    recovers: int = 0,
) -> StudyRun:
    """The run of this name and seed, noted down as one that `variant` asks for."""
    run = StudyRun(*named, recipe, (variant,), needs, recovers)
    run = replace(run, recipe=replace(recipe, output=str(study.output / run.name)))
    known = runs.get(run.name)
    if known is not None:
        assert known.recipe == run.recipe, f"two runs are called {run.name}"
        run = replace(known, variants=tuple(dict.fromkeys((*known.variants, variant))))
    runs[run.name] = run
    return run


def _note_by_plan(study: Study, seed: int, setting: str, runs: dict[str, StudyRun]) -> None:
    """Note down what the plan makes of a run that is noted down."""
    run = runs.get(f"seed{seed}/{setting}")
    if run is None or run.recipe.last == 0 or run.recipe.baseline:
        there = dict.fromkeys(each.setting for each in runs.values() if each.recipe.last and not each.recipe.baseline)
        raise UserError(f"planned: {setting!r} is no setting with MoE layers of this study{suggest(setting, there)}")
    named = f"{setting}-{PLANNED}", "-".join(filter(None, (run.qualifier, PLANNED)))
    epochs = recovery_epochs(run.recipe)
    recipe = replace(run.recipe, epochs=run.recipe.epochs + epochs)
    _noted(study, named, recipe, PLANNED, run.name, runs, recovers=epochs)


def _canonical(recipe: Recipe) -> Recipe:
    """One recipe for all that describe the same model: what a model does not depend on has its default."""
    width = recipe.top_k + recipe.shared_expert
    default = {key: _DEFAULTS[key] for key in MOE_FIELDS}
    if recipe.last == 0 or recipe.baseline == "dense" or (recipe.baseline == "wide" and width == 1):
        return replace(recipe, **default)
    if recipe.baseline == "wide":  # of the MoE settings only the number of FFNs that are active together counts
        return replace(recipe, **{**default, "last": recipe.last, "baseline": "wide", "top_k": width - 1})
    return recipe


def _differences(recipe: Recipe, base: Recipe, told: tuple[str, ...] = ()) -> list[str]:
    """The other settings in which a recipe differs, as words of a file name."""
    mine, theirs = asdict(recipe), asdict(base)
    keys = [key for key in mine if key not in (*RESERVED, *told) and mine[key] != theirs[key]]
    plain = [f"{key}={mine[key]}" for key in keys if re.fullmatch(r"[\w.+-]{1,24}", str(mine[key]))]
    odd = {key: mine[key] for key in keys if not re.fullmatch(r"[\w.+-]{1,24}", str(mine[key]))}
    if not odd:
        return plain
    return [*plain, hashlib.sha256(json.dumps(odd, sort_keys=True).encode()).hexdigest()[:6]]


def _grid(factors: Mapping[str, tuple[Any, ...]]) -> Iterator[Settings]:
    for values in product(*factors.values()):
        yield dict(zip(factors, values, strict=True))


def _grid_point(
    study: Study, variant: str, factors: Settings, usual_start: Recipe | None
) -> tuple[str, Recipe, Recipe | None]:
    """The variant, its recipe at these factors, and the pretraining's where there is one."""
    recipe = _canonical(_recipe({**study.base, **factors}, f"variant {variant!r}"))
    if usual_start is None:
        return variant, recipe, None
    shared = {key: getattr(recipe, key) for key in factors if key in DATA_AND_MODEL and key not in (study.start or {})}
    return variant, recipe, replace(usual_start, **shared)


def _recipe(settings: Settings, where: str) -> Recipe:
    try:
        return make_recipe(settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
