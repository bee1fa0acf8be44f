"""`vimoe card`: the model card of a run."""

from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser


def run(arguments: Sequence[str]) -> None:
    """Write the card into the model folder."""
    parser = Parser("card", "It holds what the run holds: analyze and prune it first for intervals and heatmaps.")
    parser.value("run", "a run folder, or a model folder for a shorter card", type=Path)
    parser.flag("--license", "the Hub's name of the model's licence, such as apache-2.0")
    parser.flag("--overwrite", "replace a README.md that is there", False, action="store_true")
    args = parser.parse(arguments)
    from vimoe.report.model_card import write_card

    print(f"The card lies in {write_card(args.run, args.license, args.overwrite)}.")
