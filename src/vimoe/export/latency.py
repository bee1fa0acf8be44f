"""How long models take, measured in turns, so that what else the machine does falls on all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch


class Latency(NamedTuple):
    """The seconds that one contender took, by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the rounds is below the first, a quarter above the second."""
        return quartiles(self.seconds)

    def over(self, other: "Latency") -> float:
        """How many times the other's: the median over rounds of ratios within a round."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile; those of a single value are that value."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def take_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: str | torch.device = "cpu", warmups: int = 2
) -> dict[str, Latency]:
    """Run all contenders in every round, beginning with another one each time; `device` is waited for."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for run in contenders.values():
        for _ in range(warmups):
            run()
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wait()
            started = time.perf_counter()
            contenders[name]()
            wait()
            seconds[name].append(time.perf_counter() - started)
    return {name: Latency(tuple(taken)) for name, taken in seconds.items()}
