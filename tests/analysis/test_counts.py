from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vimoe
from vimoe.analysis.counts import RoutingCounts, class_expert_counts, count_routing


def small_vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=32, depth=3, num_heads=2, num_classes=3
    )


@given(st.integers(0, 50), st.integers(1, 3), st.integers(1, 5), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_every_choice_is_counted_once_where_it_belongs(size: int, k: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (size, k), generator=generator)
    labels = torch.randint(0, classes, (size,), generator=generator)
    expected = np.zeros((classes, 4), dtype=np.int64)
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        for e in row:
            expected[label, e] += 1
    assert (class_expert_counts(ids, labels, classes, 4).numpy() == expected).all()


def test_counts_of_image_routing_agree_with_the_recorded_choices() -> None:
    model = vimoe.upcycle(small_vit(), last=2, num_experts=4)
    images, labels = torch.randn(10, 1, 8, 8), torch.arange(10) % 3
    model.train()
    counts = count_routing(model, [(images[:6], labels[:6]), (images[6:], labels[6:])], ("a", "b", "c"))
    assert model.training
    model.eval()
    with vimoe.record_routing(model) as record, torch.no_grad():
        model(images)
    assert counts.layers == (1, 2)
    for layer in (1, 2):
        expected = class_expert_counts(record.expert_ids[layer], labels, 3, 4).numpy()
        assert (counts.layer(layer) == expected).all()


def test_token_routing_counts_patches_and_leaves_the_class_token_out() -> None:
    model = vimoe.upcycle(small_vit(), last=1, num_experts=4, routing="token")
    counts = count_routing(model, [(torch.randn(5, 1, 8, 8), torch.zeros(5, dtype=torch.long))], ("a", "b", "c"))
    assert counts.counts.sum() == 5 * 4  # four patches an image, five tokens


def test_layers_of_different_sizes_keep_their_own_number_of_experts() -> None:
    model = vimoe.prune(vimoe.upcycle(small_vit(), last=2, num_experts=4), {1: [0, 3]})
    counts = count_routing(model, [(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))], ("a",))
    assert counts.layer(1).shape == (1, 2)
    assert counts.layer(2).shape == (1, 4)


def test_a_saved_table_reads_back_the_same(tmp_path: Path) -> None:
    table = RoutingCounts((1, 3), (2, 2), ("ä", "<b>"), np.arange(8).reshape(2, 2, 2))
    table.save(tmp_path / "routing" / "val.npz")
    back = RoutingCounts.load(tmp_path / "routing" / "val.npz")
    assert (back.layers, back.num_experts, back.class_names) == (table.layers, table.num_experts, table.class_names)
    assert (back.counts == table.counts).all()


def test_a_missing_or_foreign_table_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(vimoe.UserError, match="there are no routing counts at"):
        RoutingCounts.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(vimoe.UserError, match="holds no routing counts"):
        RoutingCounts.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(vimoe.UserError, match="holds no routing counts"):
        RoutingCounts.load(tmp_path / "other.npz")


def test_a_dense_model_has_nothing_to_count() -> None:
    with pytest.raises(vimoe.UserError, match="no MoE layer"):
        count_routing(small_vit(), [(torch.randn(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))], ("a",))


def test_counts_of_another_layer_set_get_one_line() -> None:
    table = RoutingCounts((1, 3), (2, 2), ("a", "b"), np.zeros((2, 2, 2), dtype=np.int64))
    table.check(vimoe.MoEConfig(layers=(1, 3), num_experts=(2, 2)))
    for layers, experts in (((1, 2), (2, 2)), ((1, 3), (2, 4)), ((3,), (2,))):
        with pytest.raises(
            vimoe.UserError, match="of another model: of blocks 1 \\(2 experts\\), 3 \\(2 experts\\), and"
        ):
            table.check(vimoe.MoEConfig(layers=layers, num_experts=experts))


def test_super_classes_add_up_their_classes_and_survive_a_file(tmp_path: Path) -> None:
    table = np.array([[1, 2], [3, 4], [5, 6]])
    counts = replace(RoutingCounts.of({4: table}, ("a", "b", "c")), super_classes=("x", "y", "x"))
    counts.save(tmp_path / "counts.npz")
    grouped = RoutingCounts.load(tmp_path / "counts.npz").by_super_class()
    assert grouped.class_names == ("x", "y")
    assert (grouped.layer(4) == [[6, 8], [3, 4]]).all()
    assert grouped.num_experts == (2,)


def test_counts_written_before_there_were_super_classes_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", layers=[4], num_experts=[2], class_names=["a"], counts=[[[1, 2]]])
    assert RoutingCounts.load(tmp_path / "old.npz").super_classes == ()
