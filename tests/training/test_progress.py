import time
from collections.abc import Iterator

import pytest

from vimoe.training.progress import Progress, duration, peak_memory_mb


def test_waiting_for_data_is_told_apart_from_work() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    progress = Progress(1, 1, 3, 0, 60, loud=False)
    for _ in progress.waiting(slow()):
        progress.step(10)
    metrics = progress.metrics()
    assert progress.waited >= 0.15
    assert 0.5 < metrics["data_wait"] <= 1
    assert 0 < metrics["images_per_second"] < 200
    assert metrics["memory_mb"] == pytest.approx(peak_memory_mb(), rel=0.1)


def test_the_items_come_through_unchanged() -> None:
    assert list(Progress(1, 1, 3, 0, 60, loud=False).waiting(iter([(1, 2), (3, 4)]))) == [(1, 2), (3, 4)]


def test_without_a_terminal_a_line_comes_when_its_interval_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2, 5, 10, 4, 0.0, loud=True)
    progress.step(8)
    progress.show(0.5, 1e-3)
    line = capsys.readouterr().err
    assert line.startswith("  epoch 2/5 batch 5/10  loss 0.500  lr 0.001  ")
    assert "images/s" in line
    assert line.rstrip().endswith("left")
    quiet = Progress(2, 5, 10, 4, 3600.0, loud=True)
    quiet.show(0.5, 1e-3)
    Progress(2, 5, 10, 4, 0.0, loud=False).show(0.5, 1e-3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(6.6, "7 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
