import errno
import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import recipe
from vimoe.errors import UserError
from vimoe.training.recipe import load_recipe
from vimoe.training.run_folder import RunFolder


def test_a_folder_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    run, first = RunFolder(tmp_path), recipe(tmp_path)
    run.check(first)
    run.write_recipe(first)
    with pytest.raises(UserError, match=r"holds a run of another recipe \(lr was 0.002, is 0.1\): choose another"):
        run.check(replace(first, lr=0.1))


def test_what_changes_no_bit_may_change(tmp_path: Path) -> None:
    run, first = RunFolder(tmp_path), recipe(tmp_path, workers=0)
    run.write_recipe(first)
    changes = {
        **{"output": "elsewhere", "device": "cuda", "workers": 1, "data_dir": "moved", "max_broken": 0.5},
        **{"log_interval": 1.0, "log_tensorboard": True, "log_wandb": True, "checkpoint_minutes": 1.0},
    }
    assert run.check(replace(first, **changes)) == {}  # type: ignore[arg-type]


def test_changed_augmentation_is_taken_only_when_the_user_says_so(tmp_path: Path) -> None:
    run, first = RunFolder(tmp_path), recipe(tmp_path, aa="rand-m9", mixup=0.2)
    run.write_recipe(first)
    changed = replace(first, aa="", mixup=0.0)
    with pytest.raises(UserError, match=r"\(aa was 'rand-m9', is ''\): .* or go on with it with --resume-changed"):
        run.check(changed)
    assert run.check(changed, resume_changed=True) == {"aa": ["rand-m9", ""], "mixup": [0.2, 0.0]}
    with pytest.raises(UserError, match=r"\(lr was .*\): choose another --output$"):
        run.check(replace(changed, lr=0.1), resume_changed=True)
    run.model.mkdir()
    (run.model / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"choose another --output$"):  # it is finished: nothing would change
        run.check(changed, resume_changed=True)


def test_changes_are_noted_one_line_each(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.note_change({"aa": ["rand-m9", ""]}, 3, 12)
    run.note_change({"mixup": [0.2, 0.0]}, 5, 0)
    assert [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()] == [
        {"epoch": 3, "batch": 12, "changed": {"aa": ["rand-m9", ""]}},
        {"epoch": 5, "batch": 0, "changed": {"mixup": [0.2, 0.0]}},
    ]


def test_where_a_run_starts_from_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    run, relative = RunFolder(tmp_path / "run"), recipe(tmp_path, initial_checkpoint="model")
    run.write_recipe(relative)
    assert load_recipe(run.path / "recipe.yaml").initial_checkpoint == str(tmp_path / "model")
    run.check(relative)
    monkeypatch.chdir("/")
    run.check(replace(relative, initial_checkpoint=str(tmp_path / "run" / ".." / "model")))


def test_rows_are_kept_as_lines_and_as_a_table(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [{"epoch": 1, "loss": 0.5, "routing": {"2": {"max_load": 0.3}}}, {"epoch": 2, "loss": 0.25, "routing": {}}]
    assert run.read_rows() == []
    run.write_rows(rows)
    assert run.read_rows() == rows
    assert (tmp_path / "summary.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize("text", ['{"epoch": 1}\n{"ep', "\x00\xff", "[1]\n", "3\n", '{"loss": 1}\n', "[" * 100_000])
def test_damaged_rows_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged") as caught:
        RunFolder(tmp_path).read_rows()
    assert "\n" not in str(caught.value)


def test_broken_images_are_listed_as_a_table(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_skipped([])
    assert not (tmp_path / "skipped.csv").exists()
    run.write_skipped({'b "x".jpg cannot be read', "a.jpg is no image"})
    assert (tmp_path / "skipped.csv").read_text() == 'reason\n"a.jpg is no image"\n"b ""x"".jpg cannot be read"\n'


def test_a_folder_in_use_is_refused_until_its_process_lets_go(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(UserError, match="is in use by another process"), RunFolder(run.path).locked():
        pass
    with run.locked():
        pass


def test_a_file_system_without_locks_is_a_line_and_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with RunFolder(tmp_path).locked():
        pass
    assert (
        capsys.readouterr().err == f"vimoe: {tmp_path} cannot be locked (No locks available): run one process in it\n"
    )


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for name in ("model/.saving-abc/model.safetensors", "checkpoints/.state.writing", ".recipe.yaml.writing"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / "model" / "config.json").write_text("{}")
    with run.locked():
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".lock", "model/config.json"]


def test_initial_routers_read_back_and_damaged_or_missing_ones_get_one_line(tmp_path: Path) -> None:
    run, weights = RunFolder(tmp_path), {10: np.ones((3, 4), np.float32), 11: np.zeros((2, 4), np.float32)}
    with pytest.raises(UserError, match=r"initial weights are not at .*initial_routers\.npz: `vimoe train` keeps them"):
        run.read_initial_routers()
    run.write_initial_routers(weights)
    found = run.read_initial_routers()
    assert list(found) == [10, 11]
    assert all((found[block] == weights[block]).all() for block in weights)
    whole = (tmp_path / "initial_routers.npz").read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "initial_routers.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"initial_routers\.npz is damaged: "):
            run.read_initial_routers()
    np.savez(tmp_path / "initial_routers.npz", head=np.ones(2))
    with pytest.raises(UserError, match=r"initial_routers\.npz is damaged: "):
        run.read_initial_routers()


def test_a_run_does_not_begin_in_the_folder_of_a_study_or_a_demo(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_inputs({"verb": "study"})
    with pytest.raises(UserError, match="is the folder of a study: choose another --output"):
        run.check(recipe(tmp_path))
    run.write_inputs({"run": "abc"})  # of prune, which trains there
    run.check(recipe(tmp_path))


def test_a_folder_made_from_something_else_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "made")
    run.check_inputs({"run": "abc", "plan": [1, 2]})
    assert not run.path.exists()
    run.write_inputs({"run": "abc", "plan": [1, 2]})
    run.check_inputs({"run": "abc", "plan": [1, 2]})
    with pytest.raises(UserError, match="made holds what came of another run and plan: choose another --output"):
        run.check_inputs({"run": "abd", "plan": [1]})
    with pytest.raises(UserError, match="made holds what came of another verb: choose another --output"):
        run.check_inputs({"verb": "study"})
    for text in ("", "[]", "{}", "null", "3", "[" * 100_000):
        (run.path / "made_by.json").write_text(text)
        with pytest.raises(UserError, match=r"made_by\.json is damaged: choose another --output"):
            run.check_inputs({"run": "abc"})
