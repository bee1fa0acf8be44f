import os
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vimoe.data import loaders
from vimoe.data.decode import BrokenImageError
from vimoe.data.digits import digits
from vimoe.data.images import Images
from vimoe.data.loaders import NOBODY, batches, training_batches
from vimoe.errors import UserError


class Drawn(Images):
    """Numbers from every source of randomness, labelled by their index; some are broken."""

    from_files = True

    def __init__(self, size: int, broken: tuple[int, ...] = ()) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if index in self.broken:
            raise BrokenImageError(f"{index} is broken")
        return torch.tensor([torch.rand(()), random.random(), np.random.rand()]), index


class Worker(Drawn):
    """Labelled by the process that reads them."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return torch.zeros(1), os.getpid()


class Killed(Drawn):
    """Ends the process that reads it, as a system short of memory does."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def drawn(images: Images, **how: Any) -> dict[int, list[float]]:
    """By label, what was drawn."""
    settings = {"batch_size": 3, "seed": 0, "epoch": 0, **how}
    return {
        int(label): numbers.tolist()
        for shown, labels in training_batches(images, **settings)
        for numbers, label in zip(shown, labels, strict=True)
    }


def test_what_an_image_draws_depends_on_seed_epoch_and_image_and_on_nothing_else() -> None:
    images = Drawn(12)
    first = drawn(images)
    assert drawn(images) == drawn(images, workers=2) == drawn(images, batch_size=4) == first
    late = drawn(images, first=2)
    assert len(late) == 6
    assert all(first[label] == numbers for label, numbers in late.items())
    for other in (drawn(images, epoch=1), drawn(images, seed=1)):
        assert all(a != b for label in first for a, b in zip(first[label], other[label], strict=True))
    assert len({tuple(numbers) for numbers in first.values()}) == 12


def test_workers_are_kept_from_pass_to_pass_and_a_pass_that_is_broken_off_changes_no_later_one() -> None:
    images = Worker(8)

    def workers(epoch: int) -> set[int]:
        return {int(pid) for _, pids in training_batches(images, 2, 0, epoch, workers=2) for pid in pids}

    assert len(workers(0)) == 2
    assert workers(0) == workers(1)
    shown = Drawn(12)
    whole = [drawn(shown, epoch=epoch) for epoch in (1, 2)]
    for epoch, expected in zip((1, 2), whole, strict=True):
        broken_off = training_batches(shown, 3, 0, 0, workers=2)
        next(broken_off)
        broken_off.close()
        assert drawn(shown, epoch=epoch, workers=2) == expected


def test_two_passes_over_the_same_images_at_once_do_not_disturb_each_other() -> None:
    images = Drawn(8)
    assert len(list(batches(images, 2, workers=1))) == 4  # leaves a loader behind
    pairs = zip(batches(images, 2, workers=1), batches(images, 2, workers=1), strict=True)
    assert [(a.tolist(), b.tolist()) for (_, a), (_, b) in pairs] == [([i, i + 1],) * 2 for i in (0, 2, 4, 6)]


def test_only_so_many_loaders_keep_their_workers() -> None:
    for _ in range(5):
        assert len(list(batches(Drawn(2), 2, workers=1))) == 1
    assert len(loaders._idle) == 3


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(UserError, match="a process that decodes images was killed: is memory short"):
        list(batches(Killed(4), 2, workers=1))


@pytest.mark.parametrize("size", [5, 6, 7])
def test_processes_evaluate_every_image_once_in_as_many_batches_each(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "world_size", lambda: 3)
    seen, counts = list[int](), list[int]()
    for rank in range(3):
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        parts = [labels.tolist() for _, labels in batches(Drawn(size), 1)]
        counts.append(len(parts))
        seen += [label for part in parts for label in part]
    assert len(set(counts)) == 1
    assert sorted(label for label in seen if label != NOBODY) == list(range(size))
    assert len(seen) == 3 * -(-size // 3)


@pytest.mark.parametrize("broken", [(1,), (1, 2), (3,), (0, 1, 2)])
def test_processes_take_as_many_batches_each_where_one_can_read_nothing(
    broken: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "world_size", lambda: 2)
    seen, counts = list[int](), list[int]()
    for rank in range(2):
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        parts = [labels.tolist() for _, labels in batches(Drawn(4, broken), 1)]
        counts.append(len(parts))
        seen += [label for part in parts for label in part if label != NOBODY]
    assert counts == [2, 2]
    assert sorted(seen) == [i for i in range(4) if i not in broken]
    with pytest.raises(UserError, match="4 images in a row cannot be read: are they there"):
        list(batches(Drawn(4, (0, 1, 2, 3)), 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_replaced_by_the_next_one_in_training_and_left_out_of_evaluation(workers: int) -> None:
    images, lines = Drawn(6, broken=(2, 3)), list[str]()
    labels = [
        label
        for _, part in training_batches(images, 6, 0, 0, workers=workers, on_broken=lines.append)
        for label in part
    ]
    assert sorted(map(int, labels)) == [0, 1, 4, 4, 4, 5]
    assert sorted(set(lines)) == ["2 is broken", "3 is broken"]
    lines.clear()
    assert [part.tolist() for _, part in batches(images, 2, workers, lines.append)] == [[0, 1], [4, 5]]
    assert lines == ["2 is broken", "3 is broken"]


def test_evaluation_sees_every_image_once_in_its_own_order() -> None:
    part = digits().test
    labels = torch.cat([labels for _, labels in batches(part, 100)])
    assert torch.equal(labels, part.targets)
