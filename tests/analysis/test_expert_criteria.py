import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.moe.support import KINDS, make_experts
from tests.vit.families import refused
from vimoe.analysis.expert_criteria import (
    CRITERIA,
    answer_sums,
    check_criteria,
    mean_norms,
    rank_agreement,
    router_change,
)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_reap_and_activation_are_the_means_over_what_an_expert_gets(kind: str) -> None:
    experts, x = make_experts(kind), torch.randn(5, 3, 16)
    ids, gates = torch.tensor([[0, 1], [1, 0], [1, 3], [0, 3], [4, 4]]), torch.rand(5, 2)  # 4 is nobody
    norms: dict[int, list[float]] = {e: [] for e in range(4)}
    weighted: dict[int, list[float]] = {e: [] for e in range(4)}
    for row, chosen, weights in zip(x, ids.tolist(), gates.tolist(), strict=True):
        for e, gate in zip(chosen, weights, strict=True):
            for token in row if e < 4 else ():
                norm = experts.to_ffn(torch.eye(4)[e])(token[None]).norm().item()
                norms[e].append(norm)
                weighted[e].append(gate * norm)
    found = mean_norms(
        answer_sums(experts, x[:2], ids[:2], gates[:2]) + answer_sums(experts, x[2:], ids[2:], gates[2:])
    )
    for name, values in (("activation", norms), ("reap", weighted)):
        expected = [sum(values[e]) / max(1, len(values[e])) for e in range(4)]
        assert found[name].tolist() == pytest.approx(expected, rel=1e-5)
    assert found["reap"][2] == found["activation"][2] == 0


def test_a_row_that_turns_does_not_change_and_one_that_shrinks_changes_below_0() -> None:
    before, after = (
        torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]]),
        torch.tensor([[5.0, 0.0], [0.0, 3.0], [1.0, 0.0]]),
    )
    assert router_change(before, after).tolist() == [0, 2, -1]


def test_criteria_that_do_not_exist_get_one_line() -> None:
    check_criteria(tuple(CRITERIA))
    with refused("unknown criterion 'reep', did you mean 'reap'?"):
        check_criteria(["ablation", "reep"])
    with refused("unknown criterion ''; there is ablation, load, router-change, reap, activation"):
        check_criteria([""])
    with refused("criterion 'load' stands there twice"):
        check_criteria(["load", "reap", "load"])


scores = st.lists(st.integers(0, 5).map(float), min_size=3, max_size=12)


@settings(deadline=None, derandomize=True, database=None)
@given(st.data())
def test_of_one_layer_the_agreement_is_scipy_s_rank_correlation(data: st.DataObject) -> None:
    one = data.draw(scores)
    other = data.draw(st.lists(st.integers(0, 5).map(float), min_size=len(one), max_size=len(one)))
    found = rank_agreement([one], [other])
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(stats.spearmanr(one, other).statistic)
        assert -1 <= found.low <= found.value <= found.high <= 1


def test_layers_are_taken_together_by_ranks_within_each() -> None:
    """What a layer is worth as a whole would make two criteria agree that order no layer's experts alike."""
    one, other = [[1.0, 2, 3], [11.0, 12, 13]], [[3.0, 2, 1], [33.0, 32, 31]]
    found = rank_agreement(one, other)
    assert found is not None
    assert found.value == pytest.approx(-1)
    assert stats.spearmanr([*one[0], *one[1]], [*other[0], *other[1]]).statistic > 0.4


def test_few_experts_say_little_and_a_perfect_order_is_not_beyond_doubt() -> None:
    three = rank_agreement([[1, 2, 3]], [[1, 2, 3]])
    assert three is not None
    assert (three.value, three.low, three.high) == (pytest.approx(1), -1, 1)
    eight = rank_agreement([list(range(8))], [list(range(8))])
    assert eight is not None
    assert eight.high == eight.value == pytest.approx(1)
    assert 0.7 < eight.low < 0.9
    assert rank_agreement([[0, 0, 0]], [[1, 2, 3]]) is None
    assert rank_agreement([[1]], [[1]]) is None


def test_the_interval_holds_its_promise_on_samples_of_experts() -> None:
    """Normal scores that correlate by r: Spearman's rank correlation is (6 / pi) asin(r / 2)."""
    torch.manual_seed(0)
    for r, layers in ((0.0, 1), (0.6, 1), (0.6, 4)):
        truth, held = 6 / math.pi * math.asin(r / 2), 0
        for _ in range(400):
            one = torch.randn(layers, 8)
            other = r * one + math.sqrt(1 - r**2) * torch.randn(layers, 8)
            found = rank_agreement(one.tolist(), other.tolist())
            assert found is not None
            held += found.low <= truth <= found.high
        assert 0.9 < held / 400 <= 0.99, (r, layers)


def test_a_perfect_order_of_several_layers_is_as_doubtful_as_one_with_two_neighbours_swapped() -> None:
    layers = [list(range(8)) for _ in range(4)]
    swapped = [[1, 0, *range(2, 8)], *layers[1:]]
    perfect, nearly = rank_agreement(layers, layers), rank_agreement(layers, swapped)
    assert perfect is not None
    assert nearly is not None
    assert perfect.low == pytest.approx(nearly.low, abs=1e-4)
