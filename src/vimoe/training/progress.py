"""Progress of a run: a bar on a terminal, a line now and then elsewhere, and the speed for the log."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from tqdm import tqdm

Item = TypeVar("Item")
# Seconds until the first line of a run, so that one knows early how long it will take.
_FIRST = 10.0


class Progress:
    """Progress and speed of an epoch (counted from 1) of which the `first` steps were done before.

    Where there is no terminal, `interval` seconds lie between two lines; only a `loud` one (process 0) shows any.
    """

    def __init__(self, epoch: int, epochs: int, steps: int, first: int, interval: float, loud: bool) -> None:
        self.epoch, self.epochs, self.steps, self.first, self.done = epoch, epochs, steps, first, first
        self.interval, self.loud = interval, loud
        self.started = time.perf_counter()
        self._shown = self.started - max(0.0, interval - _FIRST) if epoch == 1 else self.started
        self.waited, self.images = 0.0, 0
        name = f"epoch {epoch}/{epochs}"
        self._bar = tqdm(total=steps, initial=first, desc=name, leave=False, disable=None if loud else True)

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each one comes counts as waiting for data."""
        source = iter(items)
        while True:
            asked = time.perf_counter()
            item = next(source, None)
            self.waited += time.perf_counter() - asked
            if item is None:
                return
            yield item

    def step(self, images: int) -> None:
        """Count one more batch of so many images, over all processes."""
        self.done += 1
        self.images += images
        self._bar.update()

    def show(self, loss: float, lr: float) -> None:
        """Show the mean loss so far, the learning rate, speed and the time that is left, if it is time for a line."""
        now = time.perf_counter()
        if not self.loud or now - self._shown < (self.interval if self._bar.disable else 1.0):
            return
        self._shown, metrics = now, self.metrics()
        left = (self.epochs - self.epoch + 1) * self.steps - self.done
        eta = (now - self.started) / max(1, self.done - self.first) * left
        line = (
            f"loss {loss:.3f}  lr {lr:.2g}  {metrics['images_per_second']:.0f} images/s  "
            f"data {metrics['data_wait']:.0%}  {metrics['memory_mb']:.0f} MB  {duration(eta)} left"
        )
        if self._bar.disable:
            print(f"  epoch {self.epoch}/{self.epochs} batch {self.done}/{self.steps}  {line}", file=sys.stderr)
        else:
            self._bar.set_postfix_str(line)

    def metrics(self) -> dict[str, float]:
        """For `metrics.jsonl`: images a second, share of the time that went into waiting for data, peak memory."""
        seconds = max(1e-9, time.perf_counter() - self.started)
        return {
            "images_per_second": round(self.images / seconds, 1),
            "data_wait": round(self.waited / seconds, 4),
            "memory_mb": round(peak_memory_mb(), 1),
        }

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def peak_memory_mb() -> float:
    """The most this process has held so far: on the GPU where it has one, else in main memory; in 10^6 bytes."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 1e6 if sys.platform == "darwin" else kilobytes * 1024 / 1e6


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `7 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"
