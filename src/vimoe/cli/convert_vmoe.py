"""`vimoe convert-vmoe`: a checkpoint of google-research/vmoe as a model folder."""

from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser, at_least


def run(arguments: Sequence[str]) -> None:
    """Read the checkpoint, and write the model folder."""
    parser = Parser("convert-vmoe", "Layers, experts and sizes are the checkpoint's. Needs pip install 'vimoe[vmoe]'.")
    parser.value("checkpoint", "a flax or .npz file, or X for X.index and X.data-00000-of-00001", type=Path)
    parser.value("output", "the folder to write", type=Path)
    parser.flag("--top-k", "experts chosen for each token", 2, type=at_least(1))
    parser.flag("--capacity", "serve the most decided tokens of an image only, see --router prioritised", type=float)
    args = parser.parse(arguments)
    from vimoe.cli.info import describe_folder
    from vimoe.vit.checkpoint import save
    from vimoe.vit.vmoe_checkpoint import load_vmoe

    model = load_vmoe(args.checkpoint, args.top_k, args.capacity)
    save(model, args.output)
    print(describe_folder(args.output))
    if not model.num_classes:
        print("The model has no head: it gives features. --initial-checkpoint gives it one to train.")
