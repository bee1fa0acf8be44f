"""What the defaults of a fine-tuning are worth: the rule, the plain defaults, and the best of a small grid.

    python benchmarks/defaults.py IMAGES... --initial-checkpoint FOLDER --img-size 64 --workers 0

Of each folder a small set is drawn with each seed: so many images of so many classes for training, for validation, and
for the test, which decides nothing. A folder without `test` is tested on its `val`; then validation images come from
`train`. All settings show the images as often: as the rule does, or `--epochs`. The grid of rates is run with the first
seed, and what is best on its validation images is run with the others too. The same command goes on where it was
stopped.
"""

import argparse
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vimoe.analysis.evaluate_run import evaluate
from vimoe.data.decode import SUFFIXES
from vimoe.data.listing import files_below, folders
from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.report.tables import Table
from vimoe.training.build import model_width
from vimoe.training.defaults import finetune
from vimoe.training.fit import train
from vimoe.training.recipe import make_recipe
from vimoe.training.source import open_recipe_data

# What the rule is compared with: shares of its rate, each with a layer decay.
GRID = {"rate / 3": (1 / 3, 0.75), "rate x 3": (3, 0.75), "no layer decay": (1, 1.0)}
PLAIN = "plain defaults"


def draw(root: Path, folder: Path, seed: int, classes: int, sizes: Mapping[str, int]) -> int:
    """Links to a small set in `folder`, so many images a class of each split; gives those for training."""
    drawn = random.Random(seed)
    names = sorted(drawn.sample(found := folders(root / "train"), min(classes, len(found))))
    count = 0
    for name in names:
        pools = {split: files_below(root / split / name, SUFFIXES) for split in folders(root)}
        for images in pools.values():
            drawn.shuffle(images)
        if "test" not in pools:
            pools = {"train": pools["train"], "val": pools["train"][sizes["train"] :], "test": pools["val"]}
        for split, size in sizes.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for image in pools[split][:size]:
                link = folder / split / name / image.name
                link.unlink(missing_ok=True)
                link.symlink_to(image.resolve())
        count += len(pools["train"][: sizes["train"]])
    return count


def contenders(images: int, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by name: the rule, the plain defaults, and the rule with the rates of the grid; all show as much."""
    recipe = make_recipe(given)
    rule = finetune(images, model_width(recipe, open_recipe_data(recipe)), given)
    grid = {name: {**rule, "lr": share * rule["lr"], "layer_decay": decay} for name, (share, decay) in GRID.items()}
    epochs = given.get("epochs") or rule["epochs"]
    return {"rule": rule, PLAIN: {"epochs": epochs, "warmup_epochs": epochs / 10}, **grid}


def scored(given: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> tuple[float, float]:
    """Top-1 on validation and test images of a run with these settings."""
    recipe = make_recipe({**given, **settings, "output": str(folder)})
    try:
        last = train(recipe).read_rows()[-1]
    except UserError as error:
        if "try a lower lr" not in str(error):
            raise
        return 0.0, 0.0  # it diverged
    return last["val_top1"], evaluate(folder, workers=recipe.workers, device=recipe.device).summary["top1"]


def measured(root: Path, given: Mapping[str, Any], output: Path, seeds: int, draws: Mapping[str, Any]) -> list[str]:
    """A row of the table for one folder: test scores of the rule, the plain defaults, the best of the grid."""
    found: dict[str, list[tuple[float, float]]] = {}
    best = ""
    for seed in range(seeds):
        folder = output / root.name / f"seed{seed}"
        images = draw(root, folder / "images", seed, **draws)
        data = {**given, "data_dir": str(folder / "images"), "seed": seed}
        settings = contenders(images, data)
        for name in settings if not seed else dict.fromkeys(("rule", PLAIN, best)):
            found.setdefault(name, []).append(score := scored(data, settings[name], folder / name.replace(" ", "")))
            print(f"{root.name}, seed {seed}, {name}: validation {score[0]:.1f}, test {score[1]:.1f}", flush=True)
        best = best or max((name for name in settings if name != PLAIN), key=lambda name: found[name][0][0])
    cells = [_spread([test for _, test in found[name]]) for name in ("rule", PLAIN, best)]
    return [root.name, *cells, best, *(f"{scores[0][0]:.1f}" for scores in found.values())]


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--initial-checkpoint", required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=10)
    for split, size in {"train": 40, "val": 15, "test": 40}.items():
        parser.add_argument(f"--{split}", type=int, default=size, help="images of each class")
    for name, kind in (("epochs", int), ("img-size", int), ("workers", int), ("device", str)):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    roots, output, seeds = (given.pop(name) for name in ("images", "output", "seeds"))
    draws = {"classes": given.pop("classes"), "sizes": {name: given.pop(name) for name in ("train", "val", "test")}}
    rows = [measured(root, given, output, seeds, draws) for root in roots]
    names = ("rule", PLAIN, *GRID)
    header = ("set", "rule", PLAIN, "best of the grid", "which is", *(f"val: {name}" for name in names))
    table = Table(header, rows, [f"Test top-1 in percent, {seeds} seeds; val: validation top-1 of the first seed."])
    write_text(output / "defaults.md", table.markdown())
    print(table.text())


if __name__ == "__main__":
    main()
