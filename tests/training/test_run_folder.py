import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.tiny import recipe
from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.training.run_folder import RunFolder


def test_a_folder_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    run, first = RunFolder(tmp_path), recipe(tmp_path)
    run.check(first)
    run.write_recipe(first)
    run.check(replace(first, output="elsewhere", device="cuda"))  # a moved run is the same run
    with pytest.raises(UserError, match=r"holds a run of another recipe \(lr was 0.002, is 0.1\): choose another"):
        run.check(replace(first, lr=0.1))


def test_rows_are_kept_as_lines_and_as_a_table(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [{"epoch": 1, "loss": 0.5, "routing": {"2": {"max_load": 0.3}}}, {"epoch": 2, "loss": 0.25, "routing": {}}]
    assert run.read_rows() == []
    run.write_rows(rows)
    assert run.read_rows() == rows
    assert (tmp_path / "summary.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"


def test_broken_images_are_listed_as_a_table(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_skipped([])
    assert not (tmp_path / "skipped.csv").exists()
    run.write_skipped({'b "x".jpg cannot be read', "a.jpg is no image"})
    assert (tmp_path / "skipped.csv").read_text() == 'reason\n"a.jpg is no image"\n"b ""x"".jpg cannot be read"\n'


def test_a_full_disk_keeps_the_old_file_and_leaves_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_where_the_folder_should_be_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_folder_in_use_is_refused_until_its_process_lets_go(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(UserError, match="is in use by another process"), RunFolder(run.path).locked():
        pass
    with run.locked():
        pass
