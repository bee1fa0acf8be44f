import copy
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vit.families import refused
from vimoe import MoEConfig, Plan, UserError
from vimoe.vit.plan import LayerPlan, blocks

CONFIG = MoEConfig(layers=(1, 2), num_experts=(4, 3), top_k=2)
PLAN = Plan(
    (
        LayerPlan(
            1, (), load=(0.5, 0.25, 0.25, 0.0), reason="the class does not decide the expert", evidence={"lost": 0.5}
        ),
        LayerPlan(2, (2, 0)),
    )
)
MERGED = Plan((LayerPlan(1, (3, 1), merge=True),))


def test_a_plan_comes_back_from_its_dictionary_and_from_json() -> None:
    assert Plan.from_dict(PLAN.to_dict()) == PLAN
    assert Plan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN
    assert Plan.from_dict(MERGED.to_dict()) == MERGED
    assert MERGED.to_dict()["layers"][0]["action"] == "merge"


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


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((1, (0.5, 2)), "plan for block 1: experts must be a list of whole numbers, got (0.5, 2)"),
        ((1, ("0", "2")), "plan for block 1: experts must be a list of whole numbers, got ('0', '2')"),
        ((1, (True, False)), "plan for block 1: experts must be a list of whole numbers, got (True, False)"),
        ((1, "02"), "plan for block 1: experts must be a list of whole numbers, got '02'"),
        ((1, None), "plan for block 1: experts must be a list of whole numbers, got None"),
        (("1", ()), "not a plan: layer must be a whole number, got '1'"),
        ((True, ()), "not a plan: layer must be a whole number, got True"),
        ((1, (), ("much",)), "plan for block 1: load and evidence must be numbers: …"),
        ((1, (), 0.5), "plan for block 1: load and evidence must be numbers: …"),
        ((1, (), (10**400,)), "plan for block 1: load and evidence must be numbers: …"),
        ((1, (), None, "", {"lost": None}), "plan for block 1: load and evidence must be numbers: …"),
        ((1, (), None, "", 3), "plan for block 1: load and evidence must be numbers: …"),
    ],
)
def test_a_value_of_another_type_gets_one_line(values: Any, line: str) -> None:
    with refused(line):
        LayerPlan(*values)


@pytest.mark.parametrize("layers", [None, 5, [LayerPlan(1, ())], ("keep",)])
def test_the_layers_of_a_plan_are_layer_plans(layers: Any) -> None:
    with refused("the layers of a plan are a tuple of LayerPlans, got …"):
        Plan(layers)


def test_a_layer_that_appears_twice_gets_one_line() -> None:
    with refused("plan for block 2: it appears twice"):
        Plan((LayerPlan(2, ()), LayerPlan(1, ()), LayerPlan(2, (0, 1)))).check(CONFIG)


@pytest.mark.parametrize("experts", [{}, {"experts": []}])
def test_keep_alone_keeps_the_layer_whole(experts: dict[str, Any]) -> None:
    parts = [{"layer": 1, "action": "keep", "reason": "I know better", **experts}, {"layer": 2, "action": "prune"}]
    assert Plan.from_dict({"layers": parts}) == Plan((LayerPlan(2, ()),))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (None, "not a plan: it must hold a list named layers"),
        ([], "not a plan: it must hold a list named layers"),
        ("prune", "not a plan: it must hold a list named layers"),
        ({}, "not a plan: it must hold a list named layers"),
        ({"layers": None}, "not a plan: it must hold a list named layers"),
        ({"layers": [3]}, "not a plan: each layer must have its block number `layer` and an `action`, got 3"),
        ({"layers": [{"action": "prune"}]}, "not a plan: each layer must have its block number …"),
        ({"layers": [{"layer": 1}]}, "not a plan: each layer must have its block number …"),
        (
            {"layers": [{"layer": 1, "action": "prune", "laod": [1.0]}]},
            "plan for block 1: unknown key 'laod'; there is layer, action, experts, load, reason, evidence",
        ),
        ({"layers": [{"layer": "x", "action": "prune"}]}, "not a plan: layer must be a whole number, got 'x'"),
        ({"layers": [{"layer": 1.5, "action": "prune"}]}, "not a plan: layer must be a whole number, got 1.5"),
        (
            {"layers": [{"layer": 1, "action": "drop"}]},
            "plan for block 1: action must be keep, merge or prune, got 'drop'",
        ),
        (
            {"layers": [{"layer": 1, "action": "prune", "experts": [1]}]},
            "plan for block 1: action prune goes with no experts, got [1]",
        ),
        (
            {"layers": [{"layer": 1, "action": "keep", "experts": "01"}]},
            "plan for block 1: experts must be a list of whole numbers, got '01'",
        ),
        (
            {"layers": [{"layer": 1, "action": "keep", "experts": [0.7, 2]}]},
            "plan for block 1: experts must be a list of whole numbers, got [0.7, 2]",
        ),
        (
            {"layers": [{"layer": 1, "action": "keep", "experts": 2}]},
            "plan for block 1: experts must be a list of whole numbers, got 2",
        ),
        (
            {"layers": [{"layer": 1, "action": "prune", "load": ["much"]}]},
            "plan for block 1: load and evidence must be numbers: could not convert string to float: 'much'",
        ),
        (
            {"layers": [{"layer": 1, "action": "prune", "load": 1.0}]},
            "plan for block 1: load and evidence must be numbers: …",
        ),
    ],
)
def test_a_dictionary_that_is_no_plan_gets_one_line(values: Any, line: str) -> None:
    with refused(line):
        Plan.from_dict(values)


# Files


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "new" / "plan.json")
    assert Plan.load(tmp_path / "new" / "plan.json") == PLAN
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.json"]


def test_numpy_s_numbers_are_written_as_plain_ones(tmp_path: Path) -> None:
    part = LayerPlan(np.int64(1), np.arange(2), np.ones(4) / 4, evidence={"lost": np.float32(0.5)})  # type: ignore
    Plan((part,)).save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == Plan((LayerPlan(1, (0, 1), (0.25,) * 4, evidence={"lost": 0.5}),))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{not json", "cannot read …plan.json: …"),
        ("[" * 100_000, "cannot read …plan.json: …"),
        ("\xff", "cannot read …plan.json: …"),
        ('{"layers": 1}', "…plan.json: not a plan: it must hold a list named layers"),
        (
            '{"layers": [{"layer": 1, "action": "prune", "load": [1' + 400 * "0" + "]}]}",
            "…plan.json: plan for block 1: …",
        ),
    ],
)
def test_a_file_that_holds_no_plan_gets_one_line(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="latin-1")
    with refused(line):
        Plan.load(tmp_path / "plan.json")


def test_a_plan_that_is_not_there_gets_one_line(tmp_path: Path) -> None:
    with refused(f"there is no plan at {tmp_path / 'plan.json'}: `vimoe analyze` writes one"):
        Plan.load(tmp_path / "plan.json")


def test_three_and_more_blocks_in_a_row_are_a_range() -> None:
    assert blocks([]) == "no block"
    assert blocks([3]) == "block 3"
    assert blocks([11, 10]) == "blocks 10, 11"
    assert blocks(range(12)) == "blocks 0 to 11"
    assert blocks([0, 1, 2, 5]) == "blocks 0 to 2, 5"


PART = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=8), parts, max_size=3),
    max_leaves=4,
)


@given(data=st.data())
def test_whatever_is_edited_in_a_plan_it_is_read_to_the_same_again_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values: Any = copy.deepcopy(PLAN.to_dict())
    owner = data.draw(st.sampled_from([values, *values["layers"], values["layers"][1]["experts"]]))
    key = data.draw(st.sampled_from(list(owner) if isinstance(owner, dict) else list(range(len(owner)))))
    owner[key] = data.draw(PART)
    path = tmp_path_factory.getbasetemp() / "plan.json"
    path.write_text(json.dumps(values))
    with suppress(UserError):
        plan = Plan.load(path)
        plan.check(CONFIG)
        plan.save(path)
        assert repr(Plan.load(path)) == repr(plan)  # nan is not equal to itself


def test_layers_that_follow_one_router_keep_their_experts_in_one_order() -> None:
    one = replace(CONFIG, num_experts=(4, 4), routing="image", router_scope="model")
    Plan((LayerPlan(1, (2, 0)), LayerPlan(2, (2, 0)))).check(one)
    with pytest.raises(UserError, match="the same experts in each, in the same order"):
        Plan((LayerPlan(1, (0, 2)), LayerPlan(2, (2, 0)))).check(one)
