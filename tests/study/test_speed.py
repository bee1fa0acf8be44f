from itertools import pairwise

from torch import nn

from vimoe.study.speed import compare_speed


def linears(*widths: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *(nn.Linear(a, b) for a, b in pairwise(widths)))


def test_the_peak_is_weights_and_the_tensors_that_live_together() -> None:
    """Batch 10, 12 inputs: 100 and 50 wide activations live together while the second map is computed."""
    model = linears(12, 100, 50)
    weights = 4 * sum(p.numel() for p in model.parameters())
    (speed,) = compare_speed([model], (3, 2, 2), "cpu", batch_size=10, rounds=1)
    assert speed.peak_bytes == weights + 4 * 10 * (100 + 50)
    assert speed.batch_size == 10


def test_what_is_dropped_on_the_way_does_not_count() -> None:
    (deep,) = compare_speed([linears(12, 100, 1, 1, 100, 1)], (3, 2, 2), "cpu", batch_size=10, rounds=1)
    weights = 4 * sum(p.numel() for p in linears(12, 100, 1, 1, 100, 1).parameters())
    assert deep.peak_bytes == weights + 4 * 10 * (100 + 1)
