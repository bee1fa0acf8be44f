import json
from typing import Any

import numpy as np
import pytest

from tests.vit.families import refused
from vimoe import MoEConfig, Plan
from vimoe.vit.plan import LayerPlan

CONFIG = MoEConfig(layers=(1, 2), num_experts=(4, 3), top_k=2)
PLAN = Plan(
    (
        LayerPlan(
            1, (), load=(0.5, 0.25, 0.25, 0.0), reason="the class does not decide the expert", evidence={"lost": 0.5}
        ),
        LayerPlan(2, (2, 0)),
    )
)


def test_a_plan_comes_back_from_its_dictionary_and_from_json() -> None:
    assert Plan.from_dict(PLAN.to_dict()) == PLAN
    assert Plan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN


def test_a_plan_without_layers_changes_nothing_and_comes_back_too() -> None:
    assert Plan.from_dict(Plan(()).to_dict()) == Plan(())
    Plan(()).check(CONFIG)


def test_a_plan_says_in_words_what_becomes_of_a_layer() -> None:
    assert PLAN.to_dict() == {
        "split": "",
        "layers": [
            {
                "layer": 1,
                "action": "prune",
                "experts": [],
                "load": [0.5, 0.25, 0.25, 0.0],
                "reason": "the class does not decide the expert",
                "evidence": {"lost": 0.5},
            },
            {"layer": 2, "action": "keep", "experts": [2, 0], "load": None, "reason": "", "evidence": {}},
        ],
    }
    assert [part.pruned for part in PLAN.layers] == [True, False]


def test_what_a_plan_may_leave_out_has_a_default() -> None:
    values = {"layers": [{"layer": 1, "action": "prune"}, {"layer": 2, "action": "keep", "experts": [0, 1]}]}
    assert Plan.from_dict(values) == Plan((LayerPlan(1, ()), LayerPlan(2, (0, 1))))


def test_a_plan_that_fits_is_accepted_with_numpy_s_numbers_too() -> None:
    PLAN.check(CONFIG)
    Plan((LayerPlan(1, tuple(np.argsort([3, 1, 2, 0]))), LayerPlan(2, (), tuple(np.ones(3) / 3)))).check(CONFIG)


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (LayerPlan(0, ()), "plan for block 0: the model's MoE layers are blocks 1, 2"),
        (LayerPlan(-1, ()), "plan for block -1: the model's MoE layers are blocks 1, 2"),
        (LayerPlan(1, (0, 4)), "plan for block 1: experts must be distinct numbers from 0 to 3, got [0, 4]"),
        (LayerPlan(1, (-1, 0)), "plan for block 1: experts must be distinct numbers from 0 to 3, got [-1, 0]"),
        (LayerPlan(1, (1, 1)), "plan for block 1: experts must be distinct numbers from 0 to 3, got [1, 1]"),
        (LayerPlan(1, (0.5, 2)), "plan for block 1: experts must be distinct numbers from 0 to 3, got [0.5, 2]"),
        (LayerPlan(1, ("0", "2")), "plan for block 1: experts must be distinct numbers from 0 to 3, got ['0', '2']"),
        (LayerPlan(1, (3,)), "plan for block 1: 1 experts are too few for top_k 2"),
        (LayerPlan(1, (), (0.5, 0.5)), "plan for block 1: load must be 4 shares, none negative and not all 0"),
        (LayerPlan(1, (), ()), "plan for block 1: load must be 4 shares, none negative and not all 0"),
        (LayerPlan(2, (), (0, 0, 0)), "plan for block 2: load must be 3 shares, none negative and not all 0"),
        (LayerPlan(2, (), (2, -1, 0)), "plan for block 2: load must be 3 shares, none negative and not all 0"),
        (
            LayerPlan(2, (), (1, float("nan"), 0)),
            "plan for block 2: load must be 3 shares, none negative and not all 0",
        ),
        (
            LayerPlan(2, (), (1, float("inf"), 0)),
            "plan for block 2: load must be 3 shares, none negative and not all 0",
        ),
    ],
)
def test_a_plan_that_does_not_fit_the_model_gets_one_line(part: Any, line: str) -> None:
    with refused(line):
        Plan((part,)).check(CONFIG)


def test_a_layer_that_appears_twice_gets_one_line() -> None:
    with refused("plan for block 2: it appears twice"):
        Plan((LayerPlan(2, ()), LayerPlan(1, ()), LayerPlan(2, (0, 1)))).check(CONFIG)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (None, "not a plan: TypeError 'NoneType' object is not subscriptable"),
        ([], "not a plan: TypeError list indices must be integers or slices, not str"),
        ("prune", "not a plan: TypeError string indices must be integers, not 'str'"),
        ({}, "not a plan: KeyError 'layers'"),
        ({"layers": None}, "not a plan: TypeError 'NoneType' object is not iterable"),
        ({"layers": [3]}, "not a plan: TypeError 'int' object is not subscriptable"),
        ({"layers": [{"action": "prune"}]}, "not a plan: KeyError 'layer'"),
        ({"layers": [{"layer": 1}]}, "not a plan: KeyError 'action'"),
        (
            {"layers": [{"layer": 1, "action": "prune", "laod": [1.0]}]},
            "plan for block 1: unknown key 'laod'; there is layer, action, experts, load, reason, evidence",
        ),
        ({"layers": [{"layer": "x", "action": "prune"}]}, "not a plan: layer must be a whole number, got 'x'"),
        ({"layers": [{"layer": 1.5, "action": "prune"}]}, "not a plan: layer must be a whole number, got 1.5"),
        (
            {"layers": [{"layer": 1, "action": "drop"}]},
            "plan for block 1: action must be keep or prune, got 'drop'",
        ),
        (
            {"layers": [{"layer": 1, "action": "keep"}]},
            "plan for block 1: action keep goes with the experts to keep, got []",
        ),
        (
            {"layers": [{"layer": 1, "action": "prune", "experts": [1]}]},
            "plan for block 1: action prune goes with no experts, got [1]",
        ),
        (
            {"layers": [{"layer": 1, "action": "keep", "experts": "01"}]},
            "plan for block 1: experts must be whole numbers, got ['0', '1']",
        ),
        (
            {"layers": [{"layer": 1, "action": "keep", "experts": [0.7, 2]}]},
            "plan for block 1: experts must be whole numbers, got [0.7, 2]",
        ),
        (
            {"layers": [{"layer": 1, "action": "keep", "experts": 2}]},
            "not a plan: TypeError 'int' object is not iterable",
        ),
        (
            {"layers": [{"layer": 1, "action": "prune", "load": ["much"]}]},
            "not a plan: ValueError could not convert string to float: 'much'",
        ),
        (
            {"layers": [{"layer": 1, "action": "prune", "load": 1.0}]},
            "not a plan: TypeError 'float' object is not iterable",
        ),
    ],
)
def test_a_dictionary_that_is_no_plan_gets_one_line(values: Any, line: str) -> None:
    with refused(line):
        Plan.from_dict(values)
