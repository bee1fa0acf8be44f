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
    parser.add_argument(
        "--task", choices=("classification", "segmentation"), default="classification", help="digits, or scenes of them"
    )
    parser.add_argument("--output", type=Path, help="where the runs and the report go (runs/demo, runs/demo_scenes)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--device", default="cpu", help="a torch device")
    args = parser.parse_args(list(arguments))
    from vimoe.study.demonstration import run_demo

    output = args.output or Path("runs/demo" if args.task == "classification" else "runs/demo_scenes")
    run_demo(output, args.seed, args.device, args.task)
