"""Which settings of a study are compared with which, and what came of it: always paired by seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vimoe.study.rows import StudyRow, by_setting
from vimoe.study.statistics import Paired, holm, paired, pooled_std

# What may differ between an MoE model and its dense control; the rest of their recipes agrees.
_MODEL_KEYS = {
    *("last", "num_experts", "top_k", "shared_expert", "routing", "preset", "router_noise", "balance_weight"),
    "baseline",
}
# Along these a study is drawn; their values are not compared one by one.
_ALONG_THE_AXES = ("last", "num_experts", "baseline")


class Comparison(NamedTuple):
    """Two settings, or two families of them, on the test split.

    Attributes:
        question: What is asked; comparisons of one question differ in where it is asked.
        one: The setting that is looked at.
        other: What it is compared with.
        differences: By seed, `one` less `other`, in the metric's own unit.
        of_many: Whether it is the mean over the settings that the question is asked of.
    """

    question: str
    one: str
    other: str
    differences: dict[int, float]
    of_many: bool = False

    @property
    def paired(self) -> Paired:
        """The differences as one paired test."""
        return paired(list(self.differences.values()))


def comparisons(rows: Sequence[StudyRow]) -> list[Comparison]:
    """Every comparison that the settings of a study allow, question by question.

    MoE against dense; MoE against a dense model of equal activated parameters; and settings that differ in one recipe
    key alone, other than N and L: with a shared expert against without, token against image routing, and so on. A
    question that is asked of several settings is also asked of their mean over all of them, seed by seed.
    """
    settings = by_setting(row for row in rows if row.kind != "start")
    first = {name: same[0] for name, same in settings.items()}
    found: list[Comparison] = []
    found += _question("MoE against dense", settings, _against("moe", "dense", first))
    found += _question("MoE against dense of equal activated parameters", settings, _against("moe", "wide", first))
    found += _question("dense with more parameters against dense", settings, _against("wide", "dense", first))
    for key in dict.fromkeys(key for row in first.values() for key in row.recipe):
        if key not in _ALONG_THE_AXES:
            for question, pairs in _one_key_apart(key, first).items():
                found += _question(question, settings, pairs)
    return found


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
    """Whether two settings differ in nothing but what the model is."""
    return _differ_in(row, other) <= _MODEL_KEYS


def _question(
    question: str, settings: dict[str, list[StudyRow]], pairs: Iterable[tuple[str, str]]
) -> Iterator[Comparison]:
    asked = []
    for one, other in pairs:
        theirs = {row.seed: row.test for row in settings[other]}
        differences = {row.seed: row.test - theirs[row.seed] for row in settings[one] if row.seed in theirs}
        if differences:
            asked.append(Comparison(question, one, other, differences))
    yield from asked
    complete = [seed for seed in asked[0].differences if all(seed in c.differences for c in asked)] if asked else []
    if len(asked) > 1 and complete:
        means = {seed: sum(c.differences[seed] for c in asked) / len(asked) for seed in complete}
        yield Comparison(question, f"mean of {len(asked)}", "their controls", means, of_many=True)


def _against(kind: str, control_kind: str, first: dict[str, StudyRow]) -> Iterator[tuple[str, str]]:
    """Each setting of a kind with the control that shares the rest of its recipe (a wide one its L and width too)."""
    for name, row in first.items():
        for other, control in first.items():
            if (row.kind, control.kind) != (kind, control_kind) or not share_training(row, control):
                continue
            if control.kind != "wide" or _last_and_width(control) == _last_and_width(row):
                yield name, other


def _one_key_apart(key: str, first: dict[str, StudyRow]) -> dict[str, list[tuple[str, str]]]:
    """By question, the pairs that differ in this key alone; against the value that comes first, or against false."""
    values = list(dict.fromkeys(json.dumps(row.recipe[key]) for row in first.values()))
    usual = "false" if "false" in values else values[0]
    found: dict[str, list[tuple[str, str]]] = {}
    for name, row in first.items():
        for other, control in first.items():
            if row.kind == control.kind and _differ_in(row, control) == {key}:
                value, theirs = json.dumps(row.recipe[key]), json.dumps(control.recipe[key])
                if theirs == usual:
                    found.setdefault(f"{key} {value} against {theirs}".replace('"', ""), []).append((name, other))
    return found


def _differ_in(row: StudyRow, other: StudyRow) -> set[str]:
    return {key for key in row.recipe if row.recipe[key] != other.recipe[key]}


def _last_and_width(row: StudyRow) -> tuple[int, int]:
    """L, and how many FFNs are active together."""
    return row.recipe["last"], row.recipe["top_k"] + row.recipe["shared_expert"]
