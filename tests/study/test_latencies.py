"""How long a study's models take is measured in turns, kept, and a part of its table."""

from pathlib import Path

import pytest
import timm

import vimoe
from tests.study.support import row
from vimoe import UserError
from vimoe.cli import main
from vimoe.study import execution
from vimoe.study.latencies import FILE, measure_settings, read_latencies
from vimoe.study.study_table import StudyRow, write_rows
from vimoe.study.study_tables import settings_table


@pytest.fixture
def rows(tmp_path: Path) -> list[StudyRow]:
    """Two settings of two seeds; only the first seed's models are there."""
    rows = [row(setting, seed, 80.0) for setting in ("dense", "N8-L2") for seed in (0, 1)]
    for setting in ("dense", "N8-L2"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_classes=4)
        if setting != "dense":
            vimoe.upcycle(model, num_experts=4)
        vimoe.save(model, tmp_path / f"seed0/{setting}/model")
    write_rows(rows, tmp_path / "study.csv")
    return rows


def test_one_model_of_each_setting_is_timed_and_the_table_says_how(tmp_path: Path, rows: list[StudyRow]) -> None:
    assert read_latencies(tmp_path) is None
    assert "ms" not in settings_table(rows).header
    found = measure_settings(rows, tmp_path, batch=3, device="cpu", rounds=2)
    assert read_latencies(tmp_path) == found
    assert {setting: len(taken.seconds) for setting, taken in found.by_setting.items()} == {"dense": 2, "N8-L2": 2}
    table = settings_table([*rows, row("later", 0, 80.0)], found)
    cells = {line[0]: dict(zip(table.header, line, strict=True)) for line in table.rows}
    assert cells["dense"]["ms"] == f"{1e3 * found.by_setting['dense'].median:.2f}"
    assert cells["later"]["ms"] == "-"
    assert "3 images at once on cpu, 1 thread" in table.notes[-1]


def test_the_command_measures_when_all_is_trained(
    tmp_path: Path, rows: list[StudyRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = execution.Progress([], {each.run: {} for each in rows}, {})
    monkeypatch.setattr(execution, "execute", lambda study, jobs: done)
    file = tmp_path / "tiny.yaml"
    file.write_text("{base: {dataset: digits, device: cpu}, variants: [{name: main, last: 0}]}")
    assert main(["study", "-c", str(file), "--output", str(tmp_path), "--measure", "1"]) == 0
    assert "1 image at once" in (tmp_path / "tables" / "settings.md").read_text()


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"batch": 1, "device": "cpu", "threads": 1, "by_setting": {"a": 3}}']
)
def test_a_damaged_file_ends_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match="holds no latencies: remove it, or measure again"):
        read_latencies(tmp_path)
