"""What an MoE layer costs against a dense FFN with the same activated multiply-adds.

Every round draws new tokens, as every training step does, and runs each contender once, in turn, so that a machine
whose speed drifts slows all of them alike; the table gives the median over rounds of contender / dense *of the same
round*.

    python benchmarks/moe_layer.py                       # the table of docs/performance.md
    python benchmarks/moe_layer.py --experts-scaling --tokens 32896   # N = 64 against N = 2
    python benchmarks/moe_layer.py --forms               # a row for each router and form of experts
    python benchmarks/moe_layer.py --device cuda --dims 768 1024 --tokens 65536 --dtypes bf16 --peers
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vimoe.export.latency import quartiles
from vimoe.moe.config import MoEConfig
from vimoe.moe.layer import MoELayer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARM_UP = 10  # rounds, until a CPU's library knows the numbers of rows that experts get
TOKENS_AN_IMAGE = 257  # ViT-S/14 at 224 px: 256 patches and the class token


class Peer(nn.Module):
    """transformers' Mixtral experts at equal activated multiply-adds, under the same router."""

    def __init__(self, dim: int, num_experts: int, implementation: str) -> None:
        super().__init__()
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        # Mixtral's experts have three matrices where ours have two: two thirds of the hidden width.
        config = MixtralConfig(hidden_size=dim, intermediate_size=4 * dim * 2 // 3, num_local_experts=num_experts)
        config._experts_implementation = implementation
        self.experts = MixtralExperts(config)
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter, std=0.02)
        self.router = nn.Linear(dim, num_experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        gates, ids = self.router(rows).float().softmax(-1).topk(1)
        return self.experts(rows, ids, gates.to(x.dtype)).view_as(x)


def contenders(dim: int, num_experts: int, peers: bool, device: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Dense first; the routed layers have no shared expert, so that all activate one FFN of 4·dim."""
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {"dense": Mlp(dim, 4 * dim)}
    for routing in ("image", "token"):
        config = MoEConfig((0,), (num_experts,), shared_expert=False, routing=routing)
        ffn = Mlp(dim, 4 * dim)
        models[f"vimoe {routing}"] = MoELayer(ffn, config, num_experts=num_experts, num_prefix_tokens=1)
    if peers:
        for implementation in ("grouped_mm", "eager"):
            models[f"transformers {implementation}"] = Peer(dim, num_experts, implementation)
    return {name: model.to(device, dtype) for name, model in models.items()}


# Settings of `MoEConfig`; N is the number of experts, and each form is held against a dense FFN of its own size.
FORMS: dict[str, dict[str, Any]] = {
    "top_k, image": {"routing": "image"},
    "top_k, token": {},
    "top_k, k = 2": {"top_k": 2},
    "renormalised, k = 2": {"top_k": 2, "gate": "renormalised"},
    "bias": {"balance": "bias"},
    "prioritised": {"router": "prioritised"},
    "expert choice": {"router": "expert_choice"},
    "soft": {"router": "soft", "init": "copy"},
    "shared": {"shared_expert": True},
    "residual": {"shared_expert": True, "init": "residual"},
    "split, k = N / 2": {"init": "split"},
    "fine-grained, m = 4": {"granularity": 4, "top_k": 4},
    "low rank, r = 16": {"shared_expert": True, "init": "residual", "expert_rank": 16},
}


def form_layer(name: str, dim: int, num_experts: int, tokens: int) -> MoELayer:
    """The MoE layer of a form, in the place of an FFN of 4·dim."""
    settings = {"routing": "token", "shared_expert": False, **FORMS[name]}
    if settings.get("init") == "split":
        settings |= {"granularity": num_experts, "top_k": num_experts // 2}
    elif "granularity" in settings:
        num_experts *= settings["granularity"]
    if settings.get("router") == "soft":
        settings["slots"] = -(-tokens // num_experts)
    config = MoEConfig((0,), (num_experts,), **settings)
    return MoELayer(Mlp(dim, 4 * dim), config, num_experts=num_experts, num_prefix_tokens=1)


def forms_against_dense(args: argparse.Namespace) -> None:
    """Each form in turns with a dense FFN of the multiply-adds that torch counts in the form's own forward."""
    print(f"{'dim':>5} {'dtype':>5} {'pass':>8} {'form':24} {'dense of':>9} {'ms':>8} {'ratio (quartiles)':>24}")
    for dim, dtype, x in inputs(args):
        for name in FORMS:
            torch.manual_seed(0)
            layer = form_layer(name, dim, args.num_experts, TOKENS_AN_IMAGE).to(x)
            layer.experts.backend = "loop"  # whose products torch counts
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                layer(x)
            layer.experts.backend = "auto"
            hidden = round(counter.get_total_flops() / (4 * x.numel()))
            models = {"dense": Mlp(dim, hidden).to(x), name: layer}
            for backward in (False, True):
                seconds = measure(models, x, backward, args.rounds)
                print(
                    f"{dim:5} {dtype:>5} {'fwd+bwd' if backward else 'fwd':>8} {name:24} {hidden:9} "
                    f"{1000 * statistics.median(seconds[name]):8.1f} {ratios(seconds[name], seconds['dense']):>24}",
                    flush=True,
                )


def inputs(args: argparse.Namespace) -> Iterator[tuple[int, str, Tensor]]:
    """Each width and dtype, with `[images, tokens, width]` random tokens of it on the device."""
    images = max(1, args.tokens // TOKENS_AN_IMAGE)
    for dim in args.dims:
        for name in args.dtypes:
            yield dim, name, torch.randn(images, TOKENS_AN_IMAGE, dim, device=args.device, dtype=DTYPES[name])


def one_pass(model: nn.Module, x: Tensor, grad: Tensor | None, clock: Callable[[], float]) -> float:
    """Seconds of one forward, or of one forward and backward when there is a gradient to send back."""
    model.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_(grad is not None)
    start = clock()
    with torch.set_grad_enabled(grad is not None):
        y = model(x)
        if grad is not None:
            y.backward(grad)
    return clock() - start


def measure(models: dict[str, nn.Module], x: Tensor, backward: bool, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round on tokens like `x`, the first rounds (warm-up) left out."""

    def clock() -> float:
        if x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    grad = torch.randn_like(x) if backward else None
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + WARM_UP):
        x = torch.randn_like(x)
        for name, model in models.items():
            seconds[name].append(one_pass(model, x, grad, clock))
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def peak_memory(model: nn.Module, x: Tensor) -> float:
    """MiB that one forward and backward allocate beyond the model and its input, at their highest."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one_pass(model, x, torch.randn_like(x), time.perf_counter)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    from torch.profiler import ProfilerActivity, profile

    grad = torch.randn_like(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        one_pass(model, x, grad, time.perf_counter)
    current = highest = 0
    for event in sorted(trace.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            highest = max(highest, current)
    return highest / 2**20


def ratios(seconds: list[float], base: list[float]) -> str:
    values = [a / b for a, b in zip(seconds, base, strict=True)]
    low, high = quartiles(values)
    return f"{statistics.median(values):.3f} ({low:.3f} to {high:.3f})"


def against_dense(args: argparse.Namespace) -> None:
    print(f"{'dim':>5} {'dtype':>5} {'pass':>8} {'contender':24} {'ms':>8} {'ratio (quartiles)':>24} {'peak MiB':>9}")
    for dim, name, x in inputs(args):
        models = contenders(dim, args.num_experts, args.peers, args.device, DTYPES[name])
        memory = {key: peak_memory(model, x) for key, model in models.items()}
        for backward in (False, True):
            seconds = measure(models, x, backward, args.rounds)
            for key, values in seconds.items():
                passes = "fwd+bwd" if backward else "fwd"
                shown = f"{memory[key]:9.0f}" if backward else " " * 9
                print(
                    f"{dim:5} {name:>5} {passes:>8} {key:24} {1000 * statistics.median(values):8.1f} "
                    f"{ratios(values, seconds['dense']):>24} {shown}",
                    flush=True,
                )


def experts_scaling(args: argparse.Namespace) -> None:
    print("token routing, forward and backward: N experts against 2")
    for dim, name, x in inputs(args):
        models = {f"N={n}": contenders(dim, n, False, args.device, DTYPES[name])["vimoe token"] for n in (2, 8, 64)}
        seconds = measure(models, x, True, args.rounds)
        for key, values in seconds.items():
            print(
                f"{dim:5} {name:>5} {key:5} {x.shape[0] * x.shape[1]:8} tokens {1000 * statistics.median(values):8.1f} "
                f"ms {ratios(values, seconds['N=2'])}",
                flush=True,
            )


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def parse(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--tokens", type=int, default=8224)
    parser.add_argument("--num-experts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", action="store_true", help="also transformers' experts, where installed")
    parser.add_argument("--forms", action="store_true", help="each router and form of experts")
    parser.add_argument("--experts-scaling", action="store_true", help="N = 64 and 8 against 2")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    arguments = parse()
    print(machine(arguments.device))
    table = forms_against_dense if arguments.forms else experts_scaling if arguments.experts_scaling else against_dense
    table(arguments)
    print(f"whole-process peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
