import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vimoe.analysis.observations import ImageObservations, LabelSetObservations, PatchObservations
from vimoe.analysis.specialisation import specialisation


def count_by_hand(classes: np.ndarray, experts: np.ndarray, num_classes: int, num_experts: int) -> np.ndarray:
    table = np.zeros((num_classes, num_experts), dtype=np.int64)
    for image_classes, image_experts in zip(classes, experts, strict=True):
        for label, chosen in zip(image_classes, image_experts, strict=True):
            for e in chosen:
                if label >= 0:
                    table[label, e] += 1
    return table


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 2), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_both_kinds_count_every_choice_once_and_agree_where_an_image_has_one_class(
    size: int, patches: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels, experts = rng.integers(0, 3, size), rng.integers(0, 5, (size, patches, k))
    classes = np.repeat(labels[:, None], patches, 1)
    expected = count_by_hand(classes, experts, 3, 5)
    used = np.stack([np.bincount(e.ravel(), minlength=5) for e in experts])
    cut = size // 2
    by_image = ImageObservations(labels, [used[:cut], used[cut:]], 3)
    by_patch = PatchObservations([classes[:cut], classes[cut:]], [experts[:cut], experts[cut:]], 3, 5)
    assert (by_image.table() == expected).all()
    assert (by_patch.table() == expected).all()


def test_shuffling_keeps_both_margins_and_an_images_choices_together() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    used = np.array([[7, 0], [7, 0], [7, 0], [0, 7], [0, 7], [0, 7]])
    seen = ImageObservations(labels, [used], 2)
    tables = [seen.table(seen.shuffle(np.random.default_rng(seed))) for seed in range(20)]
    for table in tables:
        assert (table.sum(0) == 21).all()
        assert (table.sum(1) == 21).all()
        assert (table % 7 == 0).all()
    assert len({table.tobytes() for table in tables}) > 2


def test_patches_keep_their_places_when_maps_are_exchanged() -> None:
    """Class and expert follow the patch's place: no exchange between images can undo that, nor should it."""
    classes = np.tile([[0, 1]], (5, 1))
    experts = np.tile([[[2], [3]]], (5, 1, 1))
    seen = PatchObservations([classes], [experts], 2, 4)
    assert (seen.table(seen.shuffle(np.random.default_rng(0))) == seen.table()).all()


def test_images_of_different_sizes_and_patches_without_class_are_counted() -> None:
    classes = [np.array([[0, -1]]), np.array([[1, 1, 0], [-1, -1, -1]])]
    experts = [np.array([[[0], [1]]]), np.array([[[1], [1], [0]], [[0], [0], [0]]])]
    seen = PatchObservations(classes, experts, 2, 2)
    assert seen.table().tolist() == [[2, 0], [0, 2]]
    for seed in range(9):
        assert seen.shuffle(np.random.default_rng(seed))[0] == 0  # nobody else has two patches


@pytest.mark.parametrize("shuffled", [False, True])
def test_parts_are_the_tables_of_whole_images(shuffled: bool) -> None:
    """For both kinds: the part of a group is the table of its images alone, after an exchange as well."""
    rng = np.random.default_rng(0)
    classes, experts = rng.integers(-1, 3, (7, 4)), rng.integers(0, 5, (7, 4, 2))
    classes[:3] = classes[:3, :1].clip(0)  # images of one class
    groups = np.array([0, 1, 1, 2, 0, 2, 1])
    by_patch = PatchObservations([classes[:2], classes[2:]], [experts[:2], experts[2:]], 3, 5)
    order = by_patch.shuffle(rng) if shuffled else np.arange(7)
    parts = by_patch.parts(groups, order if shuffled else None)
    for group in range(3):
        mine = groups == group
        assert (parts[group] == count_by_hand(classes[mine], experts[order][mine], 3, 5)).all()
    used = np.stack([np.bincount(e.ravel(), minlength=5) for e in experts])
    labels = classes.max(1).clip(0)
    by_image = ImageObservations(labels, [used[:4], used[4:]], 3)
    parts = by_image.parts(groups, order if shuffled else None)
    owners = labels[order] if shuffled else labels
    for group in range(3):
        expected = np.zeros((3, 5), dtype=np.int64)
        for image in np.flatnonzero(groups == group):
            expected[owners[image]] += used[image]
        assert (parts[group] == expected).all()


def test_a_table_of_counts_reads_back_the_same() -> None:
    counts = np.array([[3, 0, 1], [0, 0, 0], [2, 5, 0]])
    assert (ImageObservations.from_counts(counts).table() == counts).all()


def test_an_image_counts_once_for_each_of_its_labels_also_after_an_exchange() -> None:
    rng = np.random.default_rng(0)
    sets, used = rng.random((30, 4)) < 0.4, rng.integers(0, 3, (30, 5))
    seen = LabelSetObservations(sets, [used[:20], used[20:]], 4)
    for order in (None, seen.shuffle(rng)):
        expected = np.zeros((4, 5), dtype=np.int64)
        for image in range(30):
            for label in range(4):
                if sets[image if order is None else order[image], label]:
                    expected[label] += used[image]
        assert (seen.table(order) == expected).all()


def test_label_sets_of_one_label_are_labels() -> None:
    rng = np.random.default_rng(1)
    labels, used = rng.integers(0, 3, 50), rng.integers(0, 2, (50, 4))
    one, sets = ImageObservations(labels, [used], 3), LabelSetObservations(np.eye(3)[labels] > 0, [used], 3)
    assert specialisation(one, 19) == specialisation(sets, 19)


def test_the_load_counts_each_choice_once_whatever_its_labels() -> None:
    labels = np.array([[True, True, True]] * 20 + [[False] * 3] * 80)
    used = np.repeat(np.eye(2, dtype=np.uint8), [20, 80], axis=0)
    assert LabelSetObservations(labels, [used], 3).load().tolist() == [20, 80]
    assert specialisation(LabelSetObservations(labels, [used], 3), shuffles=9).load == (0.2, 0.8)
    classes, experts = [np.array([[0, -1], [1, 1]])], [np.array([[[0, 1], [1, 2]], [[0, 2], [1, 0]]])]
    assert PatchObservations(classes, experts, 2, 2).load().tolist() == [3, 3], "2 stands for none"
