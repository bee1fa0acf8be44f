"""`vimoe demo`: the whole story on embedded images."""

from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser


def run(arguments: Sequence[str]) -> None:
    """Train dense, upcycle, fine-tune, look, choose, prune, recover, compare."""
    parser = Parser("demo", "Nothing is downloaded: the images are drawn from fonts, or made of scikit-learn's digits.")
    tasks = ("classification", "segmentation")
    parser.flag("--task", "letters of many scripts, or scenes of several digits", "classification", choices=tasks)
    parser.flag("--output", "the folder of runs and report (default: runs/demo or runs/demo_scenes)", type=Path)
    parser.flag("--seed", "seed of everything random", 0, type=int)
    parser.flag("--device", "a torch device", "cpu")
    args = parser.parse(arguments)
    from vimoe.study.demonstration import run_demo

    output = args.output or Path("runs/demo" if args.task == "classification" else "runs/demo_scenes")
    run_demo(output, args.seed, args.device, args.task)
