import signal
import threading
from pathlib import Path

import pytest

from vimoe.cli import main
from vimoe.training import fit
from vimoe.training.interrupt import InterruptedRun, listening


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_begins_ends_in_one_line_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(fit, "open_recipe_data", lambda recipe: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert main(["train", "--device", "cpu", "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "vimoe: stopped before training began; the same command starts again\n"
    assert signal.getsignal(number) == before
    assert not (tmp_path / "run").exists()


def test_a_first_signal_is_noted_and_a_second_stops_at_once() -> None:
    with listening() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stop.at_once = True
        with pytest.raises(InterruptedRun):
            signal.raise_signal(signal.SIGINT)


def test_another_thread_listens_to_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def listen() -> None:
        with listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]
