"""`vimoe train`: run a recipe; the same command on the same folder goes on where it stopped."""

import os
import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vimoe.cli.arguments import Parser, mapping
from vimoe.data.listing import TABLES, mask_layout, scan
from vimoe.training.data_keys import ignored_keys
from vimoe.training.defaults import KINDS, PAPER, finetune
from vimoe.training.interrupt import listening
from vimoe.training.recipe import GROUPS, Recipe, dump_recipe, make_recipe
from vimoe.yaml_files import read_yaml

# What a model starts from.
STARTS = ("model", "pretrained", "initial_checkpoint")


@listening(at_once=True)
def run(arguments: Sequence[str]) -> None:
    """Train as the flags and the recipe file say."""
    parser = Parser("train", "The same command continues a run that was stopped.")
    parser.flag("--config", "a recipe file (YAML); flags win over it", short="-c", type=Path)
    parser.flag(
        "--print-config", "print the recipe that file and flags make, and train nothing", False, action="store_true"
    )
    parser.flag(
        "--resume-changed", "continue a run although its augmentation was another one", False, action="store_true"
    )
    parser.flag(
        "--defaults",
        "what neither file nor flags say: by rule from the images and the model (finetune), as below (scratch), or the "
        "paper's; by default finetune for a pretrained start without a recipe file, else scratch",
        choices=KINDS,
    )
    add_recipe_flags(parser)
    given = parser.given(arguments)
    config, only_print = given.pop("config", None), given.pop("print_config", False)
    resume_changed, kind = given.pop("resume_changed", False), given.pop("defaults", "")
    values = {**(read_yaml(config) if config else {}), **given}
    _recognise(values, parser.note)
    if not config and not kind and "data_dir" in values and not {"dataset", *STARTS} & values.keys():
        values["pretrained"] = True
        parser.note("images and no model: a pretrained one is fine-tuned; --defaults scratch trains one from nothing")
    kind = kind or ("finetune" if not config and make_recipe(values).pretrained_start else "scratch")
    recipe = _with_defaults(kind, values, parser.note)
    if only_print:
        print(dump_recipe(recipe), end="")
        return
    from vimoe.training.fit import train  # torch is needed from here on, not for a wrong flag

    folder = train(recipe, resume_changed, partial(print, file=sys.stderr, flush=True))
    if os.environ.get("RANK", "0") == "0":
        print(_result(folder.path, recipe))


def _result(path: Path, recipe: Recipe) -> str:
    """How good the finished model is on the images that decided nothing, and what can be done next."""
    from vimoe.analysis.evaluate_run import evaluate
    from vimoe.report.evaluation_report import class_table, is_uneven, score_words

    evaluation = evaluate(path, data_dir=recipe.data_dir, workers=recipe.workers, device=recipe.device)
    lines = [f"the trained model lies in {path / 'model'}", "", score_words(evaluation)]
    lines += ["", class_table(evaluation).text()] if is_uneven(evaluation) else []
    ways = {f"vimoe evaluate {quote(str(path))}": "all metrics, by class, and the worst mistakes"}
    if recipe.upcycles:
        ways[f"vimoe analyze {quote(str(path))}"] = "which MoE layers specialise and matter"
    width = max(map(len, ways))
    return "\n".join([*lines, "", "next:", *(f"  {way:{width}}  {about}" for way, about in ways.items())])


def _with_defaults(kind: str, values: dict[str, Any], note: Callable[[str], None]) -> Recipe:
    """The recipe of these values, the others by the rule of this kind, which are said."""
    recipe, chosen = make_recipe(values), dict[str, Any]()
    if kind == "paper":
        chosen = {key: value for key, value in PAPER.items() if key not in values}
    if kind == "finetune":
        from vimoe.training.build import model_width
        from vimoe.training.source import open_recipe_data

        splits = open_recipe_data(replace(recipe, augment=False, in_memory=False))
        images, width = len(splits.train), model_width(recipe, splits)
        given = {key: getattr(recipe, key) for key in values}
        rule, ignored = finetune(images, width, given, recipe.task == "segmentation"), ignored_keys(recipe)
        chosen = {key: value for key, value in rule.items() if key not in ignored}
        kind = f"finetune for {images} training images and a model of width {width}"
    if chosen and os.environ.get("RANK", "0") == "0":
        listed = ", ".join(f"{key} {value}" for key, value in chosen.items())
        note(f"defaults: {kind}: {listed}; flags override each")
    return make_recipe({**values, **chosen})


def _recognise(values: dict[str, Any], note: Callable[[str], None]) -> None:
    """Set the task, and the data set of masks, where the layout of the data says more than the values."""
    where, task, dataset = values.get("data_dir"), values.get("task"), values.get("dataset")
    if not isinstance(where, str):
        return
    if not dataset and task in (None, "segmentation") and (layout := mask_layout(Path(where))):
        note(f"{where} holds images and masks ({layout}): the task is segmentation")
        values |= {"task": "segmentation", "dataset": layout}
    elif not task and dataset in (None, "folder", "csv") and _has_label_sets(Path(where)):
        note(f"{where} gives an image any number of labels: the task is multilabel")
        values["task"] = "multilabel"


def _has_label_sets(root: Path) -> bool:
    """Whether a table of labels has several for an image."""
    table = root.is_file() and root.suffix.lower() in TABLES
    if not table and not (root.is_dir() and any(entry.name.lower().endswith(TABLES) for entry in scan(root))):
        return False
    from vimoe.data.label_table import find_tables, read_label_table  # with torch

    return (table or bool(find_tables(root))) and read_label_table(root).several


def add_recipe_flags(parser: Parser) -> None:
    """A flag for every key of the recipe."""
    hints = get_type_hints(Recipe)
    for field in fields(Recipe):
        if field.name in GROUPS:
            parser.group(GROUPS[field.name])
        hint, settings = hints[field.name], dict[str, Any]()
        if get_origin(hint) is Literal:
            settings["choices"] = get_args(hint)
        elif bool in get_args(hint):
            settings["action"] = BooleanOptionalAction
        elif get_origin(hint) is dict:
            settings["type"] = mapping
        about = field.metadata["about"].replace("`", "")
        default = {} if field.default is MISSING else field.default
        parser.flag(f"--{field.name.replace('_', '-')}", about[0].lower() + about[1:], default, **settings)
