from pathlib import Path

from vimoe.study.run_result import read_result


def test_a_run_without_a_result_that_can_be_read_has_none(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text('{"metric": "to')
    assert read_result(tmp_path) is None
