import errno
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from vimoe.errors import UserError
from vimoe.training import resume_state
from vimoe.training.resume_state import ResumeStates


class Planted:
    """What runs when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def plant(folder: Path, data: bytes, epoch: int = 9) -> Path:
    """A state with a right check sum and any content."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{epoch:05}-0000000-{hashlib.sha256(data).hexdigest()}.pt"
    path.write_bytes(data)
    return path


def newest(folder: Path) -> Any:
    """The number in the newest state that can be restored, None where there is none."""
    found = []
    ResumeStates(folder).read(lambda state: found.append(state["w"].item()))
    return found[-1] if found else None


def write(states: ResumeStates, *numbers: int) -> None:
    for number in numbers:
        states.write({"w": torch.tensor(number)}, number, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest_state_is_read_and_the_one_before_it_kept(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    write(ResumeStates(tmp_path), 1, 2, 3)
    assert newest(tmp_path) == 3
    assert [path.name[:11] for path in sorted(tmp_path.iterdir())] == ["state-00002", "state-00003"]


def test_a_damaged_state_gives_way_to_the_one_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(ResumeStates(tmp_path), 1, 2)
    first, second = sorted(tmp_path.iterdir())
    flip(second)
    assert newest(tmp_path) == 1
    assert capsys.readouterr().err == f"vimoe: {second} is damaged; the state before it is tried\n"
    first.write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged: remove .* to start this run anew"):
        newest(tmp_path)


def test_a_state_whose_content_makes_no_sense_gives_way_too(tmp_path: Path) -> None:
    write(ResumeStates(tmp_path), 1)
    plant(tmp_path, b"")
    for content in ([], {}, {"w": 3}, "text", {"w": torch.zeros(2)}):
        torch.save(content, tmp_path / "content")
        plant(tmp_path, (tmp_path / "content").read_bytes())
    assert newest(tmp_path) == 1


@pytest.mark.parametrize("full", [True, False])
def test_a_failed_write_after_a_fall_back_leaves_the_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    write(ResumeStates(tmp_path), 1, 2)
    flip(sorted(tmp_path.iterdir())[-1])
    states = ResumeStates(tmp_path)
    states.read(lambda state: state["w"].item())

    def fails(state: Any, file: Any) -> None:
        file.write(b"half")
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fails)
        with pytest.raises(UserError if full else KeyboardInterrupt):
            write(states, 3)
    assert newest(tmp_path) == 1
    assert not list(tmp_path.glob(".*"))
    write(states, 3)
    assert newest(tmp_path) == 3
    flip(sorted(tmp_path.iterdir())[-1])
    assert newest(tmp_path) == 1


def test_what_does_not_read_back_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = ResumeStates(tmp_path)
    write(states, 1, 2)
    monkeypatch.setattr(resume_state, "_sum", lambda path: "another")
    with pytest.raises(UserError, match=r"cannot write the resume state in .* does not read back as it was written"):
        write(states, 3)
    monkeypatch.undo()
    assert newest(tmp_path) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_planted_in_a_state_is_not_executed(tmp_path: Path) -> None:
    write(ResumeStates(tmp_path), 1)
    proof = tmp_path / "executed"
    plant(tmp_path, pickle.dumps(Planted(proof)))
    torch.save({"w": Planted(proof)}, tmp_path / "content")
    plant(tmp_path, (tmp_path / "content").read_bytes(), 8)
    assert newest(tmp_path) == 1
    assert not proof.exists()
    torch.load(tmp_path / "content", weights_only=False)
    assert proof.exists()  # it would have run


@pytest.mark.parametrize("name", ["state.pt", "shards"])
def test_a_state_of_an_earlier_version_is_refused_unread(tmp_path: Path, name: str) -> None:
    proof = tmp_path / "executed"
    (tmp_path / name).mkdir()
    (tmp_path / name / ".metadata").write_bytes(pickle.dumps(Planted(proof)))
    with pytest.raises(UserError, match=f"{name} is of an earlier version: remove it to start this run anew"):
        newest(tmp_path)
    assert not proof.exists()
