"""The configuration: what it refuses, and that it survives a round trip through JSON."""

import dataclasses
import json

import numpy as np
import pytest

from vimoe.errors import UserError
from vimoe.moe.config import MAX_EXPERTS, MoEConfig


def config(**changes) -> MoEConfig:
    return MoEConfig(**{"layers": (10, 11), "num_experts": (8, 8), **changes})


def test_a_round_trip_through_json_gives_back_the_same_config():
    written = config(
        num_experts=(8, 3),
        top_k=2,
        shared_expert=False,
        routing="token",
        gate="softmax",
        gate_input="mean",
        init="copy",
        router_noise=True,
        router_rows=((), (0, 0, 1, 2, 2)),
    )
    assert MoEConfig.from_dict(json.loads(json.dumps(written.to_dict()))) == written


def test_every_setting_is_written_so_that_a_change_of_a_default_does_not_change_old_files():
    assert set(config().to_dict()) == {field.name for field in dataclasses.fields(MoEConfig)}


def test_settings_left_out_of_a_file_take_their_defaults():
    assert MoEConfig.from_dict({"layers": [10, 11], "num_experts": [8, 8]}) == config()


def test_a_config_cannot_be_changed_after_it_was_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().top_k = 9


@pytest.mark.parametrize("layers", [(11, 10), (10, 10), (-1, 3), ()])
def test_layers_must_be_distinct_and_ascending(layers):
    with pytest.raises(UserError, match="layers must be distinct block numbers in ascending order, got"):
        config(layers=layers, num_experts=(8,) * len(layers))


def test_every_layer_needs_its_number_of_experts():
    with pytest.raises(UserError, match=r"2 MoE layers need as many num_experts, got \[8\]"):
        config(num_experts=(8,))


@pytest.mark.parametrize("experts", [0, -2, MAX_EXPERTS + 1])
def test_a_number_of_experts_that_makes_no_sense_is_refused(experts):
    with pytest.raises(UserError, match=f"num_experts of block 11 must be 1 to {MAX_EXPERTS}, got {experts}"):
        config(num_experts=(8, experts))


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_must_be_positive(top_k):
    with pytest.raises(UserError, match=f"top_k must be between 1 and the 8 experts of block 10, got {top_k}"):
        config(top_k=top_k)


def test_top_k_must_fit_the_smallest_layer():
    with pytest.raises(UserError, match="top_k must be between 1 and the 4 experts of block 11, got 5"):
        config(num_experts=(8, 4), top_k=5)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("routing", "image, token"),
        ("gate", "straight_through, softmax, renormalised"),
        ("gate_input", "cls, mean"),
        ("init", "preserve, copy, residual, drop, split"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(name, choices):
    with pytest.raises(UserError, match=f"{name} must be one of {choices}, got 'patch'"):
        config(**{name: "patch"})


def test_an_unknown_key_in_a_file_is_named():
    with pytest.raises(UserError, match=r"unknown MoE setting 'colour': was this written by a newer version\?"):
        MoEConfig.from_dict({**config().to_dict(), "colour": 1.25})


def test_a_missing_key_in_a_file_is_named():
    with pytest.raises(UserError, match="incomplete MoE settings: 'num_experts' is missing"):
        MoEConfig.from_dict({"layers": [11]})


def test_a_number_where_a_list_belongs_is_one_line():
    with pytest.raises(UserError, match="layers must be a list of whole numbers, got 11"):
        MoEConfig.from_dict({"layers": 11, "num_experts": [8]})


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("top_k", 1.5, "top_k must be a whole number, got 1.5"),
        ("top_k", "2", "top_k must be a whole number, got '2'"),
        ("top_k", None, "top_k must be a whole number, got None"),
        ("top_k", True, "top_k must be a whole number, got True"),
        ("shared_expert", "no", "shared_expert must be true or false, got 'no'"),
        ("router_noise", 1, "router_noise must be true or false, got 1"),
        ("routing", ["image"], r"routing must be one of image, token, got \['image'\]"),
        ("gate", {}, "gate must be one of straight_through, softmax, renormalised, got {}"),
        ("layers", [10.0, 11], r"layers must be a list of whole numbers, got \[10.0, 11\]"),
        ("layers", None, "layers must be a list of whole numbers, got None"),
        ("num_experts", [8, True], r"num_experts must be a list of whole numbers, got \[8, True\]"),
        ("num_experts", "88", "num_experts must be a list of whole numbers, got '88'"),
        ("router_rows", 3, "router_rows must be a list of whole numbers, got 3"),
        ("router_rows", [3, 4], "router_rows must be a list of whole numbers, got 3"),
        ("router_rows", [[0, 0.5], []], r"router_rows must be a list of whole numbers, got \[0, 0.5\]"),
    ],
)
@pytest.mark.parametrize("made", ["by hand", "from a file"])
def test_a_value_of_another_type_is_refused_with_its_name(made, name, value, line):
    make = {"by hand": lambda values: MoEConfig(**values), "from a file": MoEConfig.from_dict}[made]
    with pytest.raises(UserError, match=rf"\A{line}\Z"):
        make({**config().to_dict(), name: value})


@pytest.mark.parametrize("rows", [(0, 1), (0, 2, 1), (0, 1, 2, 3), (-1, 0, 1, 2), (0, *[1] * MAX_EXPERTS, 2)])
def test_rows_of_merged_experts_must_name_each_in_order(rows):
    with pytest.raises(UserError, match="router_rows of block 11 must be its 3 experts in order, each once or more"):
        config(num_experts=(8, 3), router_rows=((), rows))
    with pytest.raises(UserError, match="2 MoE layers need as many router_rows, got 1"):
        config(router_rows=((),))
    with pytest.raises(UserError, match="with these settings they can only be removed"):
        config(balance="bias", router_rows=((), tuple(range(8))))


@pytest.mark.parametrize("values", [None, [], "moe", 5])
def test_settings_that_are_no_dictionary_are_refused(values):
    with pytest.raises(UserError, match="MoE settings must be a dictionary, got "):
        MoEConfig.from_dict(values)


def test_lists_and_numpy_numbers_become_plain_tuples_that_json_can_hold():
    made = config(layers=np.arange(10, 12), num_experts=[np.int64(8), 8])
    assert made == config()
    assert json.loads(json.dumps(made.to_dict())) == {**config().to_dict()}


def test_residual_needs_the_shared_expert_that_carries_the_output():
    with pytest.raises(UserError, match="init 'residual' needs the shared expert"):
        config(init="residual", shared_expert=False)


def test_the_routing_degree_multiplies_the_choices_of_the_layers():
    assert config(num_experts=(8, 8)).routing_degree == 64  # C(8, 1)² = 8²
    assert config(num_experts=(8, 4), top_k=2).routing_degree == 168  # C(8, 2) · C(4, 2) = 28 · 6


def test_the_shared_expert_carries_half_of_a_preserved_output_and_all_of_a_plain_copy():
    assert config(init="preserve").shared_share == 0.5
    assert config(init="copy").shared_share == 1.0


@pytest.mark.parametrize(
    ("init", "shared", "share"),
    [
        ("preserve", True, 0.5),
        ("preserve", False, 1.0),
        ("copy", True, 1.0),
        ("copy", False, 1.0),
        ("residual", True, 0),
    ],
)
def test_the_routed_experts_carry_what_the_shared_one_leaves_them(init, shared, share):
    assert config(init=init, shared_expert=shared).routed_share == share
