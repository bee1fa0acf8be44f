import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.tiny import recipe
from vimoe.errors import UserError
from vimoe.training.logs import open_logs, scalars

ROW = {"epoch": 3, "loss": 0.5, "routing": {"11": {"max_load": 0.25, "load": [0.25, 0.75]}}}


def test_numbers_are_named_by_their_place_and_lists_left_out() -> None:
    assert dict(scalars(ROW)) == {"epoch": 3.0, "loss": 0.5, "routing/11/max_load": 0.25}


def test_no_logger_is_opened_unasked(tmp_path: Path) -> None:
    with open_logs(tmp_path, recipe(tmp_path)) as add:
        add(ROW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flag", "module"), [("log_tensorboard", "torch.utils.tensorboard"), ("log_wandb", "wandb")])
def test_a_logger_that_is_not_installed_is_told_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'vimoe\["), open_logs(tmp_path, recipe(tmp_path, **{flag: True})):
        pass


def test_rows_reach_weights_and_biases_under_a_name_that_survives_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    session = SimpleNamespace(
        log=lambda values, step: told.append((values, step)), finish=lambda exit_code: told.append(exit_code)
    )

    def init(**settings: Any) -> SimpleNamespace:
        told.append((settings["id"], settings["resume"]))
        return session

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with open_logs(tmp_path, recipe(tmp_path, log_wandb=True)) as add:
        add(ROW)
    (name, resume), *rest = told
    assert name.startswith(f"{tmp_path.name}-")
    assert (resume, rest) == ("allow", [({"loss": 0.5, "routing/11/max_load": 0.25}, 3), 0])
    for folder in (tmp_path, tmp_path / "other" / tmp_path.name):
        with open_logs(folder, recipe(folder, log_wandb=True)):
            pass
    assert [told[i][0] == name for i in (3, 5)] == [True, False], "two folders of one name are two runs"


def test_rows_reach_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with open_logs(tmp_path, recipe(tmp_path, log_tensorboard=True)) as add:
        add(ROW)
    assert any((tmp_path / "tensorboard").iterdir())
