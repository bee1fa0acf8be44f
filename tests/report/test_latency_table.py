"""A run's latencies are kept for its report, as the table that was printed."""

from pathlib import Path

import pytest

from vimoe import UserError
from vimoe.export.contenders import Measured, Touched
from vimoe.export.latency import Latency
from vimoe.report.latency_table import FILE, keep_latencies, kept_latencies, latency_table


def test_the_table_that_was_kept_is_the_one_that_was_printed(tmp_path: Path) -> None:
    taken = {"dense": Latency((0.002, 0.004)), "ViMoE": Latency((0.003, 0.006))}
    table = latency_table([Measured(2, taken, Touched(1, 4, 10**6, 4 * 10**6))], "cpu", 1)
    assert kept_latencies(tmp_path) == []
    keep_latencies(table, tmp_path)
    (kept,) = kept_latencies(tmp_path)
    assert kept.text() == table.text()
    assert [row[0] + row[-1] for row in kept.rows] == ["dense1.00", "ViMoE1.50"]


@pytest.mark.parametrize("content", ["", "{}", "3", '{"header": ["a"], "rows": 3, "notes": []}'])
def test_a_damaged_file_ends_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match="holds no latencies: remove it, or measure again"):
        kept_latencies(tmp_path)
