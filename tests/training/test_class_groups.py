"""Groups of classes that a model takes for one another."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vimoe.training.class_groups import group_classes


def blocks(sizes: list[int], seed: int) -> tuple[NDArray[np.floating], list[list[int]]]:
    """A confusion matrix whose classes are taken for classes of their own block alone, in a random order."""
    rng = np.random.default_rng(seed)
    block = rng.permutation(np.repeat(range(len(sizes)), sizes))
    confusion = rng.uniform(1, 5, (len(block), len(block))) * (block[:, None] == block) + 50 * np.eye(len(block))
    return confusion, sorted(np.flatnonzero(block == number).tolist() for number in range(len(sizes)))


def within(confusion: NDArray[np.floating], groups: list[list[int]]) -> float:
    """How alike members are, pair by pair."""
    share = confusion / confusion.sum(1, keepdims=True)
    return sum(share[a, b] + share[b, a] for group in groups for a, b in combinations(group, 2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [[5, 5], [3, 3, 3, 3], [4, 4, 3], [12] * 8])
def test_a_matrix_of_blocks_gives_back_the_blocks(sizes: list[int], seed: int) -> None:
    confusion, expected = blocks(sizes, seed)
    assert sorted(group_classes(confusion, len(sizes))) == expected


@settings(max_examples=50)
@given(classes=st.integers(2, 9), seed=st.integers(0, 999), data=st.data())
def test_groups_hold_every_class_once_are_of_equal_size_and_no_swap_is_better(
    classes: int, seed: int, data: st.DataObject
) -> None:
    confusion = np.random.default_rng(seed).uniform(0, 1, (classes, classes))
    number = data.draw(st.integers(2, classes))
    groups = group_classes(confusion, number)
    assert sorted(label for group in groups for label in group) == list(range(classes))
    assert len(groups) == number
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    for a, b in combinations(range(classes), 2):
        swapped = [[{a: b, b: a}.get(label, label) for label in group] for group in groups]
        assert within(confusion, swapped) <= within(confusion, groups) + 1e-6
    for label in range(classes):  # nor is it better off in a smaller group
        old = next(group for group in groups if label in group)
        for new in (group for group in groups if len(group) < len(old)):
            moved = [[x for x in g if x != label] + [label] * (g is new) for g in groups]
            assert within(confusion, moved) <= within(confusion, groups) + 1e-6


def test_classes_that_are_never_confused_or_never_seen_are_grouped_all_the_same() -> None:
    assert group_classes(np.diag([3.0, 0.0, 2.0, 1.0]), 2) == [[0, 1], [2, 3]]
