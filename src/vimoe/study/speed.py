"""What a model really takes: seconds an image and memory, measured."""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vimoe.export.latency import take_turns
from vimoe.report.comparison import Speed
from vimoe.tasks.classification import evaluating


def compare_speed(
    models: Sequence[nn.Module], image_shape: tuple[int, int, int], device: str, batch_size: int = 32, rounds: int = 7
) -> list[Speed]:
    """Measure models in turns, so that what else the machine does falls on all of them.

    They run `rounds` times on images `[C, H, W]` of noise, so that routers choose as they please.
    """
    images = torch.randn(batch_size, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    peaks = [_peak_bytes(model, images) for model in models]

    def run(model: nn.Module) -> None:
        with evaluating(model):
            model(images)

    latencies = take_turns({str(i): partial(run, model) for i, model in enumerate(models)}, rounds, device)
    pairs = zip(latencies.values(), peaks, strict=True)
    return [Speed(latency.median / batch_size, peak, batch_size) for latency, peak in pairs]


def _peak_bytes(model: nn.Module, images: Tensor) -> int:
    """Weights, and the most that torch held beyond what it held before the batch."""
    weights = sum(p.numel() * p.element_size() for p in [*model.parameters(), *model.buffers()])
    with evaluating(model):
        if images.is_cuda:
            model(images)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            model(images)
            torch.cuda.synchronize()
            return weights + torch.cuda.max_memory_allocated() - held
        with _Held() as held_tensors:
            model(images)
    return weights + held_tensors.most


class _Held(TorchDispatchMode):
    """Bytes of the tensors that operations make, while they live; what an operation uses inside itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and id(made.untyped_storage()) not in given:
                self._add(made.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self.alive:
            self.alive[key] = weakref.ref(storage, lambda _: self._remove(key, size))
            self.now += size
            self.most = max(self.most, self.now)

    def _remove(self, key: int, size: int) -> None:
        del self.alive[key]
        self.now -= size
