import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.analysis.examples import analysis
from vimoe.analysis.analysis_result import Analysis
from vimoe.errors import UserError


def test_an_analysis_reads_back_the_same_from_disk(tmp_path: Path) -> None:
    analysis().save(tmp_path / "run" / "analysis.json")
    assert Analysis.load(tmp_path / "run" / "analysis.json") == analysis()


def test_a_layer_is_found_by_its_block() -> None:
    assert analysis().layer(2) is not None
    assert analysis().layer(2).layer == 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"surprise": 1}, "holds no analysis of this version (KeyError 'surprise'"),
        ({"depth": "three"}, "holds no analysis of this version (TypeError 'three' should be of type int"),
        ({"layers": 3}, "holds no analysis of this version (TypeError"),
        ({"layers": [{}]}, "holds no analysis of this version (KeyError"),
    ],
)
def test_what_is_no_analysis_gets_one_line(change: dict[str, object], line: str, tmp_path: Path) -> None:
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps({**asdict(analysis()), **change}))
    with pytest.raises(UserError) as caught:
        Analysis.load(path)
    assert str(caught.value).startswith(f"{path} {line}")
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_file_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no analysis at .*: `vimoe analyze` writes it"):
        Analysis.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text(json.dumps(asdict(analysis()))[:100])
    with pytest.raises(UserError, match=r"half\.json holds no analysis"):
        Analysis.load(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match=r"list\.json holds no analysis"):
        Analysis.load(tmp_path / "list.json")
