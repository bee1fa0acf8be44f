"""`vimoe demo`: the whole story on the embedded digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser


def run(arguments: Sequence[str]) -> None:
    """Train dense, upcycle, fine-tune, look, choose, prune, recover, compare."""
    parser = Parser(
        "demo",
        "Trains a small dense ViT on real scans of digits, turns it into a Mixture-of-Experts, shows which MoE "
        "layers specialise, keeps those, prunes the others, and compares the result with the dense model.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="where the runs and the report go")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--device", default="cpu", help="a torch device")
    args = parser.parse_args(list(arguments))
    from vimoe.study.demo import run_demo

    run_demo(args.output, args.seed, args.device)
