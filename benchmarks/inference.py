"""What a whole ViMoE takes in inference against a dense model of equal activated parameters.

All contenders take turns in every round; a ratio is the median over rounds of contender / wide *of the same round*.

    python benchmarks/inference.py                          # ViT-S/16, N = 8, one image at once, 1 thread
    python benchmarks/inference.py --batch 1 8 32 --threads 2
    python benchmarks/inference.py --device cuda --batch 1 8 32 --dtype bf16 --compile

`wide` is the dense model with twice the FFN in the MoE blocks, `Mixtral` the ViMoE with transformers' experts (token
routing, a shared FFN) in the place of ours. onnxruntime runs on the CPU alone. Peers take part if they are installed.
"""

import argparse
import copy
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from moe_layer import DTYPES, Peer
from torch import Tensor, nn

import vimoe
from vimoe.export.contenders import EXPORTED, competitors
from vimoe.export.latency import take_turns
from vimoe.export.verify import open_graph
from vimoe.export.write_graph import export_model, has_onnx
from vimoe.vit.blocks import find_backbone


class SharedAndPeer(nn.Module):
    def __init__(self, ffn: nn.Module, num_experts: int) -> None:
        super().__init__()
        self.ffn = ffn
        self.peer = Peer(ffn.get_submodule("fc1").weight.shape[1], num_experts, "grouped_mm")

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(x) + self.peer(x)


def mixtral(dense: nn.Module, last: int, num_experts: int) -> nn.Module:
    model = copy.deepcopy(dense)
    for block in find_backbone(model).blocks[-last:]:
        block.mlp = SharedAndPeer(block.mlp, num_experts)
    return model


def exported(model: nn.Module, scratch: Path, threads: int) -> Callable[[Tensor], Any]:
    vimoe.save(model, scratch / "model")
    return open_graph(export_model(scratch / "model", scratch / "model.onnx").path, threads)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--num-experts", type=int, default=8)
    parser.add_argument("--last", type=int, default=2)
    parser.add_argument("--routing", default="image", choices=("image", "token"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=tuple(DTYPES))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dense = timm.create_model(args.model).eval()
    upcycled = vimoe.upcycle(
        copy.deepcopy(dense), last=args.last, num_experts=args.num_experts, routing=args.routing
    ).eval()
    models = competitors(upcycled)
    size = dense.pretrained_cfg["input_size"]
    print(f"{args.model}, N = {args.num_experts}, L = {args.last}, {args.routing} routing, {args.dtype}, {args.device}")
    print(f"{args.threads} threads, torch {torch.__version__}, {platform.processor() or platform.machine()}")
    graphs = {}
    if args.device == "cpu" and args.dtype == "fp32" and has_onnx():
        for name, model in models.items():
            with tempfile.TemporaryDirectory() as scratch:
                graphs[name + EXPORTED] = exported(model, Path(scratch), args.threads)
    try:
        models["Mixtral"] = mixtral(dense, args.last, args.num_experts).eval()
    except ImportError:
        print("transformers is not installed: no Mixtral")
    for name, model in models.items():
        model = model.to(args.device, DTYPES[args.dtype])
        models[name] = torch.compile(model) if args.compile else model
    for batch in args.batch:
        images = torch.randn(batch, *size)
        there = images.to(args.device, DTYPES[args.dtype])
        runs: dict[str, Callable[[], object]] = {name: partial(model, there) for name, model in models.items()}
        runs |= {name: partial(graph, images) for name, graph in graphs.items()}
        with torch.inference_mode():
            found = take_turns(runs, args.rounds, args.device, warmups=5)
        print(f"\nbatch {batch:3}                 ms   quartiles          of wide")
        for name, latency in found.items():
            base = found[("wide" if "wide" in models else "dense") + (EXPORTED if name in graphs else "")]
            low, high = (1e3 * value for value in latency.quartiles)
            print(f"{name:20} {1e3 * latency.median:8.2f}   {low:7.2f} {high:7.2f}   {latency.over(base):9.3f}")


if __name__ == "__main__":
    main()
