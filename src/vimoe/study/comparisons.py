"""Which settings of a study are compared with which, and what came of it: always paired by seed, and by image."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vimoe.analysis.paired import Estimate, mean_loss
from vimoe.study.grid import SIZE_KEYS, activates_whole_ffns
from vimoe.study.statistics import Paired, holm, paired, pooled_std
from vimoe.study.study_table import Right, StudyRow, by_setting
from vimoe.training.recipe import MOE_KEYS

# Along these a study is drawn; their values are not compared one by one.
_ALONG_THE_AXES = ("last", "num_experts", "baseline")
# What else an MoE is held against, by kind.
_OTHERS = {
    "deeper": "more blocks of equal activated parameters",
    "ensemble": "an ensemble",
    **{"lora": "LoRA", "vpt": "visual prompts", "linear": "the classifier alone"},
}
# Each setting is looked at with its own best value of these.
TUNED = ("lr",)


class Comparison(NamedTuple):
    """Two settings (or families of them) on the test split: the one looked at, and what it is held against."""

    question: str  # what is asked; comparisons of one question differ in where it is asked
    one: str
    other: str
    differences: dict[int, float]  # by seed, `one` less `other`, in the metric's own unit
    # `[2, N]` how often each test image is right by `one` and by `other`, mean over seeds, 0 to 1; None where it is not
    # known.
    right: NDArray[np.float64] | None = None
    of_many: bool = False  # whether it is the mean over the settings that the question is asked of

    @property
    def paired(self) -> Paired:
        """The differences as one paired test over seeds: would other seeds show them?"""
        return paired(list(self.differences.values()))

    @property
    def by_image(self) -> Estimate | None:
        """The difference in points with its interval over images: would other images show it, with these models?"""
        if self.right is None:
            return None
        one, other = torch.from_numpy(self.right)
        return mean_loss(before=one, after=other)  # what is lost from `one` to `other`


def comparisons(rows: Sequence[StudyRow], right: Right | None = None) -> list[Comparison]:
    """Every comparison that the settings of a study allow, question by question.

    MoE against dense; MoE against a dense model of equal activated parameters; all the MoE layers that were tried
    against the number that is best on the validation split; what a run's plan made of it against every L of the sweep,
    against the one that is best on the validation split, and against dense; and settings that differ in one recipe key
    alone, other than N and L: with a shared expert against without, token against image routing, and so on. A question
    that is asked of several settings is also asked of their mean over all of them, seed by seed. `right` says of each
    run which test images are right.
    """
    settings = by_setting(row for row in tuned(rows) if row.kind != "start")
    first = {name: same[0] for name, same in settings.items()}
    asked: dict[str, list[tuple[str, str]]] = {}
    for question, one, other in (
        *_against("moe", "dense", "dense", first),
        *_against("moe", "wide", "dense of equal activated parameters", first),
        *(asked for kind, name in _OTHERS.items() for asked in _against("moe", kind, name, first)),
        *_against("wide", "dense", "dense", first),
        *_deepest_against_best(settings),
        *_planned_against_sweep(settings),
        *_against("planned", "dense", "dense with as many epochs", first),
        *_one_key_apart(first),
    ):
        asked.setdefault(question, []).append((one, other))
    return [each for question, pairs in asked.items() for each in _ask(question, settings, pairs, right or {})]


def tuned(rows: Sequence[StudyRow]) -> list[StudyRow]:
    """Of settings that differ in the learning rate alone, the one that is best on the validation split.

    What is left is compared and drawn as if it had no rate of its own: each setting has its best one.
    """
    settings = by_setting(row for row in rows if row.kind not in ("start", "planned"))
    families: dict[str, list[str]] = {}
    for name, (row, *_) in settings.items():
        others = {key: value for key, value in row.recipe.items() if key not in TUNED}
        families.setdefault(json.dumps([row.kind, others], sort_keys=True), []).append(name)
    best = {_best_on_val(names, settings) for names in families.values()}
    return [replace(row, qualifier=without(row, TUNED)) for row in rows if row.kind == "start" or row.origin in best]


def without(row: StudyRow, keys: Iterable[str]) -> str:
    """A run's qualifier without what it says of some recipe keys."""
    qualifier = f"-{row.qualifier}"
    for key in keys:
        qualifier = qualifier.replace(f"-{key}={row.recipe.get(key)}", "")
    return qualifier.removeprefix("-")


def spread(found: Sequence[Comparison]) -> float:
    """Standard deviation of a paired difference between seeds, pooled over comparisons; NaN where there is one seed.

    Means over several settings are left out: theirs is smaller.
    """
    return pooled_std([list(c.differences.values()) for c in found if not c.of_many])


def adjusted(found: Sequence[Comparison]) -> list[float]:
    """p-values adjusted by Holm within each question; a mean over several settings is one test and stays as it is."""
    values = {i: c.paired.p_value for i, c in enumerate(found) if c.of_many}
    for question in dict.fromkeys(c.question for c in found):
        indices = [i for i, c in enumerate(found) if c.question == question and not c.of_many]
        values |= dict(zip(indices, holm([found[i].paired.p_value for i in indices]), strict=True))
    return [values[i] for i in range(len(found))]


def share_training(row: StudyRow, other: StudyRow) -> bool:
    """Whether two settings differ in nothing but what the model is, and in what was tuned for each.

    With a frozen trunk L also says which blocks learn.
    """
    learns = {"last"} if row.recipe.get("freeze") == "trunk" else set()
    return _differ_in(row, other) <= set(MOE_KEYS) - learns


def sweeps(settings: Mapping[str, Sequence[StudyRow]]) -> Iterator[tuple[str, dict[int, str], str]]:
    """Every planned setting, by L the settings that it stands for, and which of these is best on validation."""
    for name, (row, *_) in settings.items():
        if row.kind == "planned":
            by_last = _sweep(settings[row.origin][0], settings)
            yield name, by_last, _best_on_val(by_last.values(), settings)


def _ask(
    question: str, settings: Mapping[str, Sequence[StudyRow]], pairs: Iterable[tuple[str, str]], right: Right
) -> Iterator[Comparison]:
    asked, runs = [], list[dict[int, tuple[StudyRow, StudyRow]]]()
    for one, other in pairs:
        theirs = {row.seed: row for row in settings[other]}
        both = {row.seed: (row, theirs[row.seed]) for row in settings[one] if row.seed in theirs}
        if both:
            differences = {seed: row.test - control.test for seed, (row, control) in both.items()}
            asked.append(Comparison(question, one, other, differences, _images(both.values(), right)))
            runs.append(both)
    yield from asked
    complete = [seed for seed in runs[0] if all(seed in both for both in runs)] if runs else []
    if len(asked) > 1 and complete:
        means = {seed: sum(c.differences[seed] for c in asked) / len(asked) for seed in complete}
        images = _images((both[seed] for both in runs for seed in complete), right)
        yield Comparison(question, f"mean of {len(asked)}", "their controls", means, images, of_many=True)


def _images(runs: Iterable[tuple[StudyRow, StudyRow]], right: Right) -> NDArray[np.float64] | None:
    """How often each image is right, `[2, N]`, mean over pairs of runs; None unless it is known of the same images."""
    known = [[right.get(row.run) for row in pair] for pair in runs]
    found = [images for pair in known for images in pair if images is not None]
    if len(found) < 2 * len(known) or len({len(images) for images in found}) > 1:
        return None
    return np.mean(np.reshape(found, (len(known), 2, -1)), axis=0)


def _against(
    kind: str, control_kind: str, control_name: str, first: Mapping[str, StudyRow]
) -> Iterator[tuple[str, str, str]]:
    """Each setting of a kind with the control that shares the rest of its recipe (and its size, if it has one)."""
    for name, row in first.items():
        for other, control in first.items():
            if (row.kind, control.kind) != (kind, control_kind) or not share_training(row, control):
                continue
            if _as_large(control, row):
                yield f"{_family(row)} against {control_name}", name, other


def _deepest_against_best(settings: Mapping[str, Sequence[StudyRow]]) -> Iterator[tuple[str, str, str]]:
    """Over each curve in L, its end and its best place; the validation split says which that is, not the test split."""
    curves: dict[str, dict[int, str]] = {}
    for name, (row, *_) in settings.items():
        if row.kind == "moe":
            curve = f"N = {row.recipe['num_experts']}, {_family(row)}"
            curves.setdefault(curve, {})[row.recipe["last"]] = name
    for curve, by_last in curves.items():
        best = _best_on_val(by_last.values(), settings)
        if by_last[max(by_last)] != best:
            yield f"{curve}: most layers against the best L on val", by_last[max(by_last)], best


def _sweep(origin: StudyRow, settings: Mapping[str, Sequence[StudyRow]]) -> dict[int, str]:
    """By L, the settings that differ from this one in L alone, dense for 0."""
    found: dict[int, str] = {}
    for name, (row, *_) in settings.items():
        if row.kind == "moe" and _differ_in(row, origin) <= {"last"}:
            found[row.recipe["last"]] = name
        elif row.kind == "dense" and share_training(row, origin):
            found[0] = name
    return dict(sorted(found.items()))


def _best_on_val(names: Iterable[str], settings: Mapping[str, Sequence[StudyRow]]) -> str:
    """The setting with the best mean on the validation split."""
    return max(names, key=lambda name: sum(row.val for row in settings[name]) / len(settings[name]))


def _planned_against_sweep(settings: Mapping[str, Sequence[StudyRow]]) -> Iterator[tuple[str, str, str]]:
    for name, by_last, best in sweeps(settings):
        yield from (("planned against each L of the sweep", name, other) for other in by_last.values())
        yield "planned against the best L on val", name, best


def _one_key_apart(first: Mapping[str, StudyRow]) -> Iterator[tuple[str, str, str]]:
    """The settings that differ in one recipe key alone; against the value that comes first, or against false."""
    for key in dict.fromkeys(key for row in first.values() for key in row.recipe):
        if key in _ALONG_THE_AXES:
            continue
        values = list(dict.fromkeys(json.dumps(row.recipe[key]) for row in first.values()))
        usual = "false" if "false" in values else values[0]
        for name, row in first.items():
            for other, control in first.items():
                value, theirs = json.dumps(row.recipe[key]), json.dumps(control.recipe[key])
                if row.kind == control.kind and theirs == usual and _differ_in(row, control) == {key}:
                    where = _family(control, besides=key)
                    yield f"{where}: {key} {value} against {theirs}".replace('"', ""), name, other


def _family(row: StudyRow, besides: str = "") -> str:
    """What kind of model it is, in words, whatever its N and L."""
    if row.kind != "moe":
        return "dense with more parameters" if row.kind == "wide" else row.kind
    words = ["MoE"]
    if besides != "shared_expert":
        words.append("with a shared expert" if row.recipe["shared_expert"] else "without a shared expert")
    return " ".join([*words, *([f"({row.qualifier})"] if row.qualifier else [])])


def _differ_in(row: StudyRow, other: StudyRow) -> set[str]:
    return {key for key in row.recipe if key not in TUNED and row.recipe[key] != other.recipe[key]}


def _as_large(control: StudyRow, row: StudyRow) -> bool:
    """Whether a control that was made as large as an MoE was made so for this one; true of all others."""
    if control.kind not in ("wide", "deeper", "lora", "ensemble") or any(
        map(control.recipe.get, ("lora_rank", "members"))
    ):
        return True
    if control.kind in ("wide", "deeper") and all(activates_whole_ffns(each.recipe) for each in (control, row)):
        width, other = (each.recipe["top_k"] + each.recipe["shared_expert"] for each in (control, row))
        return width == other and control.recipe["last"] == row.recipe["last"]
    return all(control.recipe[key] == row.recipe[key] for key in SIZE_KEYS if key in row.recipe)
