"""`vimoe push`: a model folder on the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser


def run(arguments: Sequence[str]) -> None:
    """Upload the model, with its card, which is written first where there is none."""
    parser = Parser("push", "Log in with `hf auth login` first. Weights, config.json and the card are uploaded.")
    parser.value("run", "a run folder or a model folder", type=Path)
    parser.value("name", "the model's name on the Hub, user/name")
    parser.flag("--private", "only you can see it, if it is new", False, action="store_true")
    args = parser.parse(arguments)
    from vimoe.export.upload import CARD, push
    from vimoe.report.model_card import HEATMAPS, check_card, make_card
    from vimoe.vit.model_config import model_folder

    folder = model_folder(args.run)
    written = (folder / CARD).exists()
    card, heatmaps = (check_card(folder / CARD), None) if written else make_card(args.run)
    if heatmaps is None and (folder / HEATMAPS).exists():
        heatmaps = (folder / HEATMAPS).read_bytes()
    images = {HEATMAPS: heatmaps} if heatmaps else {}
    print(push(folder, args.name, card, images, private=args.private))
