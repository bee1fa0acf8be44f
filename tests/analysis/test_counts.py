from pathlib import Path

import numpy as np
import pytest

import vimoe
from vimoe.analysis.counts import RoutingCounts


def test_a_saved_table_reads_back_the_same(tmp_path: Path) -> None:
    table = RoutingCounts((1, 3), (2, 2), ("ä", "<b>"), np.arange(8).reshape(2, 2, 2), ("x", "ß"))
    table.save(tmp_path / "routing" / "val.npz")
    back = RoutingCounts.load(tmp_path / "routing" / "val.npz")
    assert (back.layers, back.num_experts, back.class_names) == (table.layers, table.num_experts, table.class_names)
    assert (back.super_classes, back.counts.tolist()) == (("x", "ß"), table.counts.tolist())


def test_a_missing_or_foreign_table_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(vimoe.UserError, match="there are no routing counts at"):
        RoutingCounts.load(tmp_path / "none.npz")
    for text in ("hello", ""):
        (tmp_path / "text.npz").write_text(text)
        with pytest.raises(vimoe.UserError, match="holds no routing counts"):
            RoutingCounts.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(vimoe.UserError, match="holds no routing counts"):
        RoutingCounts.load(tmp_path / "other.npz")


def test_counts_written_before_there_were_super_classes_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", layers=[4], num_experts=[2], class_names=["a"], counts=[[[1, 2]]])
    assert RoutingCounts.load(tmp_path / "old.npz").super_classes == ()
