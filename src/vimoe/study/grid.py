"""From a study to its runs: which there are, what each is called, which can be shared. No torch."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vimoe.errors import UserError, suggest
from vimoe.study.recovery import recovery_epochs
from vimoe.study.study_file import RESERVED, Settings, Study
from vimoe.training.data_keys import check_data_keys
from vimoe.training.recipe import FREEZING, MOE_KEYS, Recipe, make_recipe

START, PLANNED = "start", "planned"
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}
_KEYS = list(_DEFAULTS)
# What an MoE model's size depends on, and that of each baseline.
SIZE_KEYS = (
    *("last", "num_experts", "top_k", "shared_expert", "routing", "init", "granularity", "expert_rank", "router"),
    *("capacity", "slots"),
)
_KEPT: dict[str, tuple[str, ...]] = {
    **{"dense": (), "linear": (), "wide": SIZE_KEYS, "deeper": SIZE_KEYS, "vpt": ("prompt_tokens",)},
    **{"lora": ("lora_rank", *SIZE_KEYS), "ensemble": ("members", *SIZE_KEYS)},
}
# Recipe keys that a setting's name has words for.
_NAMED = ("last", "num_experts", "top_k", "shared_expert", "routing", "preset", "baseline")
# What the data is and what the dense model is: a pretraining follows its fine-tunings in these.
DATA_AND_MODEL = (
    *(key for key in _KEYS[: _KEYS.index(MOE_KEYS[0])] if key not in ("workers", "max_broken", "initial_checkpoint")),
    "pos_embed_std",
)


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    setting: str  # what it is, the same for all seeds; no two settings share a name
    qualifier: str  # the part of `setting` beyond N, L and the shared expert, empty where there is none
    recipe: Recipe
    variants: tuple[str, ...]
    needs: str | None = None  # name of the run whose model it starts from, None for none
    # 0 for a run that is trained. Else the epochs of recovery of what its plan makes of the run that it needs; the
    # recipe then is that run's, with the epochs of both.
    recovers: int = 0

    @property
    def name(self) -> str:
        """The run's folder inside the study's."""
        return f"seed{self.recipe.seed}/{self.setting}"

    @property
    def kind(self) -> str:
        """`start` for a pretraining, `dense` or another baseline, `moe`, or `planned` for what its plan made of it."""
        if self.setting.split("-")[0] == START:
            return START
        return PLANNED if self.recovers else self.recipe.baseline or ("moe" if self.recipe.last else "dense")


def list_runs(study: Study) -> list[StudyRun]:
    """All runs of a study, each once, seed by seed and a pretraining before what starts from it.

    Settings that describe the same model are one run: without MoE layers (`last: 0`) the other MoE settings say
    nothing, and a run that several variants ask for belongs to all of them.

    Raises UserError if a value is not what the recipe key takes, or what is to be planned is no run with MoE layers.
    """
    base = _recipe(study.base, "base")
    start = None if study.start is None else _recipe({**study.base, **study.start}, "start")
    points = []
    for variant, factors in study.points:
        recipe = _canonical(_recipe({**study.base, **factors}, f"variant {variant!r}"))
        followed = [key for key in factors if key in DATA_AND_MODEL and key not in (study.start or {})]
        points.append((variant, recipe, start and replace(start, **{key: getattr(recipe, key) for key in followed})))
    runs: dict[str, StudyRun] = {}
    for seed in study.seeds:
        for variant, recipe, first in points:
            run = StudyRun(*name_setting(recipe, base), replace(recipe, seed=seed), (variant,))
            if start is not None and first is not None:
                other = _differences(first, start)
                named = "-".join([START, *other]), "-".join(other)
                before = _add(StudyRun(*named, replace(first, seed=seed), (variant,)), study, runs)
                checkpoint = str(Path(before.recipe.output) / "model")
                run = replace(run, recipe=replace(run.recipe, initial_checkpoint=checkpoint), needs=before.name)
            _add(run, study, runs)
    for seed in study.seeds:
        for setting in study.planned:
            _add(_planned(runs, f"seed{seed}/{setting}"), study, runs)
    return sorted(runs.values(), key=lambda run: (study.seeds.index(run.recipe.seed), run.kind != START))


def name_setting(recipe: Recipe, base: Recipe) -> tuple[str, str]:
    """What a run is, as a folder's name, and the part of it that is beyond N, L and the shared expert.

    `dense`, `N8-L2-shared`, `wide2-L2`; `N8-L2-token-lr=0.001` with the qualifier `token-lr=0.001`: of the other keys
    those that differ from the base recipe, with a short check sum for values that make no good file name.
    """
    words, qualifier = ["dense"], list[str]()
    named: tuple[str, ...] = _NAMED
    if recipe.baseline:
        width = recipe.top_k + recipe.shared_expert if _counts_in_ffns(recipe) else ""
        words = [f"{recipe.baseline}{width}", *([f"L{recipe.last}"] if recipe.last else [])]
        named = _NAMED if width else ("last", "baseline")
    elif recipe.last:
        words = [f"N{recipe.num_experts}", f"L{recipe.last}", *(["shared"] if recipe.shared_expert else [])]
        qualifier = [f"k{recipe.top_k}"] if recipe.top_k > 1 else []
        qualifier += [value for value in (recipe.routing, recipe.preset) if value not in ("image", "preserve")]
    same = ("last", "baseline", *(("freeze", "cache_features") if recipe.baseline in FREEZING else ()))
    like = _canonical(replace(base, **{key: getattr(recipe, key) for key in same}))
    qualifier += _differences(recipe, like, named)
    return "-".join([*words, *qualifier]), "-".join(qualifier)


def differing_fields(runs: list[StudyRun]) -> tuple[str, ...]:
    """The recipe keys that not all fine-tunings share."""
    tuned = [run for run in runs if run.kind != START]
    recipes = [asdict(run.recipe) for run in tuned]
    kept = [key for key in _KEYS if key not in (*RESERVED, "initial_checkpoint")]
    differing = [key for key in kept if any(recipe[key] != recipes[0][key] for recipe in recipes)]
    # What a run of the study made is another model for each seed, and the same for all that start from it.
    starts = {None if run.needs else run.recipe.initial_checkpoint for run in tuned if run.kind != PLANNED}
    return ("initial_checkpoint", *differing) if len(starts) > 1 else tuple(differing)


def _add(run: StudyRun, study: Study, runs: dict[str, StudyRun]) -> StudyRun:
    """The run in its folder; one that is there already belongs to the variants of both."""
    run = replace(run, recipe=replace(run.recipe, output=str(study.output / run.name)))
    known = runs.get(run.name)
    if known is not None:
        assert known.recipe == run.recipe, f"two runs are called {run.name}"
        run = replace(known, variants=tuple(dict.fromkeys((*known.variants, *run.variants))))
    runs[run.name] = run
    return run


def _planned(runs: dict[str, StudyRun], name: str) -> StudyRun:
    """What its plan makes of a run."""
    run = runs.get(name)
    if run is None or run.kind != "moe":
        setting, there = name.partition("/")[2], dict.fromkeys(r.setting for r in runs.values() if r.kind == "moe")
        raise UserError(f"planned: {setting!r} is no setting with MoE layers of this study{suggest(setting, there)}")
    epochs = recovery_epochs(run.recipe)
    return StudyRun(
        f"{run.setting}-{PLANNED}",
        "-".join(filter(None, (run.qualifier, PLANNED))),
        replace(run.recipe, epochs=run.recipe.epochs + epochs),
        (PLANNED,),
        run.name,
        epochs,
    )


def _canonical(recipe: Recipe) -> Recipe:
    """One recipe for all that describe the same model: what a model does not depend on has its default."""
    width = recipe.top_k + recipe.shared_expert
    if not recipe.baseline and recipe.last:
        return recipe
    kept = {key: getattr(recipe, key) for key in _KEPT[recipe.baseline or "dense"]}
    if own := next((key for key in ("lora_rank", "members") if kept.get(key)), None):
        kept = {own: kept[own]}
    if _counts_in_ffns(recipe):
        kept = {"last": recipe.last, "top_k": width - 1}
    no_larger = recipe.baseline in ("wide", "deeper") and 0 in (kept["last"], kept["top_k"])
    if recipe.baseline not in ("", "dense") and not no_larger:
        kept["baseline"] = recipe.baseline
    elif recipe.last and recipe.freeze == "trunk":  # the trunk ends so many blocks before the head
        kept = {"last": recipe.last, "baseline": "dense"}
    else:
        kept = {}
    return replace(recipe, **{key: _DEFAULTS[key] for key in MOE_KEYS} | kept)


def _counts_in_ffns(recipe: Recipe) -> bool:
    return recipe.baseline in ("wide", "deeper") and recipe.last > 0 and activates_whole_ffns(asdict(recipe))


def activates_whole_ffns(recipe: Mapping[str, Any]) -> bool:
    """Whether of these MoE settings top_k and the shared expert alone say how much a layer activates."""
    return recipe.get("init") != "split" and not recipe.get("expert_rank") and recipe.get("router", "top_k") == "top_k"


def _differences(recipe: Recipe, base: Recipe, named: tuple[str, ...] = ()) -> list[str]:
    """The other settings in which a recipe differs, as words of a file name."""
    mine, theirs = asdict(recipe), asdict(base)
    changed = {key: mine[key] for key in mine if key not in (*RESERVED, *named) and mine[key] != theirs[key]}
    odd = {key: value for key, value in changed.items() if not re.fullmatch(r"[\w.+-]{1,24}", str(value))}
    words = [f"{key}={value}" for key, value in changed.items() if key not in odd]
    return [*words, *([hashlib.sha256(json.dumps(odd, sort_keys=True).encode()).hexdigest()[:6]] if odd else [])]


def _recipe(settings: Settings, where: str) -> Recipe:
    try:
        recipe = make_recipe(settings)
        check_data_keys(recipe)
        return recipe
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
