"""What the defaults of a fine-tuning are worth: the rule against the plain defaults, on folders of images.

    python benchmarks/defaults.py IMAGES... --initial-checkpoint FOLDER --output runs/defaults
    python benchmarks/defaults.py IMAGES... --initial-checkpoint FOLDER --output runs/defaults --epochs 4 --img-size 112

Every folder is fine-tuned once with each contender, for as many epochs as the rule says unless `--epochs` does; the
same command goes on where it was stopped. One seed: intervals are over test images, differences are paired by image.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimoe.analysis.evaluate_run import evaluate
from vimoe.analysis.paired import mean_loss
from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.report.comparison import change
from vimoe.report.tables import Table
from vimoe.training.defaults import PAPER, finetune
from vimoe.training.fit import train
from vimoe.training.recipe import make_recipe
from vimoe.training.source import open_recipe_data


def contenders(images: int, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by name; all show the images as often as the rule does."""
    rule = finetune(images, given)
    epochs = given.get("epochs", rule.get("epochs"))
    plain = {"epochs": epochs, "warmup_epochs": epochs / 10}
    rates = {key: rule[key] for key in ("lr", "layer_decay")}
    return {
        "rule": rule,
        "plain defaults": plain,
        "plain, the paper's rate": {**plain, "lr": PAPER["lr"]},
        "plain, the rule's rates": {**plain, **rates},
        "rule, a third of the rate": {**rule, "lr": rule["lr"] / 3},
        "rule, three times the rate": {**rule, "lr": rule["lr"] * 3},
        "rule, no layer decay": {**rule, "layer_decay": 1.0},
    }


def measured(data_dir: Path, given: Mapping[str, Any], output: Path) -> list[list[str]]:
    """A row for each contender on one folder."""
    given = {**given, "data_dir": str(data_dir)}
    images = len(open_recipe_data(make_recipe(given)).train)
    rows, first = [], None
    for name, settings in contenders(images, given).items():
        folder = output / data_dir.name / name.replace(" ", "-").replace(",", "").replace("'", "")
        recipe = make_recipe({**given, **settings, "output": str(folder)})
        try:
            seconds = sum(row["seconds"] for row in train(recipe).read_rows())
        except UserError as error:  # such as a batch that is larger than the set
            rows.append([f"{data_dir.name}, {name}", str(error), *[""] * 6])
            continue
        found = evaluate(folder, workers=recipe.workers, device=recipe.device)
        first = first or found
        score, lost = found.score, mean_loss(first.scores, found.scores)
        rows.append(
            [
                f"{data_dir.name}, {name}",
                f"{score.value:.1f} ({score.low:.1f} to {score.high:.1f})",
                "" if found is first else change(lost),
                f"{found.summary['mean_class']:.1f}",
                *(f"{recipe.epochs}", f"{recipe.batch_size}", f"{recipe.lr:.2g}", f"{seconds:.0f}"),
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--initial-checkpoint", required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/defaults"))
    for name, kind in (("epochs", int), ("img-size", int), ("workers", int), ("seed", int), ("device", str)):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    folders, output = given.pop("images"), given.pop("output")
    rows: list[list[str]] = []
    header = ("images, settings", "top-1 % (95 %)", "against the rule", "mean of classes", "epochs", "batch", "lr", "s")
    for folder in folders:
        rows += measured(folder, given, output)
        table = Table(header, rows)
        write_text(output / "defaults.md", table.markdown())  # after each folder: the whole may take hours
        print(table.text(), flush=True)


if __name__ == "__main__":
    main()
