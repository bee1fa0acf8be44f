"""`vimoe train`: run a recipe; the same command on the same folder goes on where it stopped."""

import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vimoe.cli.arguments import Parser, mapping
from vimoe.training.interrupt import listening
from vimoe.training.recipe import GROUPS, Recipe, dump_recipe, make_recipe
from vimoe.yaml_files import read_yaml


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
    add_recipe_flags(parser)
    given = parser.given(arguments)
    config, only_print = given.pop("config", None), given.pop("print_config", False)
    resume_changed = given.pop("resume_changed", False)
    recipe = make_recipe({**(read_yaml(config) if config else {}), **given})
    if only_print:
        print(dump_recipe(recipe), end="")
        return
    from vimoe.training.fit import train  # torch is needed from here on, not for a wrong flag

    model = train(recipe, resume_changed).model
    if os.environ.get("RANK", "0") == "0":
        print(f"the trained model lies in {model}")


def add_recipe_flags(parser: Parser) -> None:
    """A flag for every key of the recipe, its help from the recipe's docstring."""
    hints = get_type_hints(Recipe)
    texts = dict(re.findall(r"^ {8}(\w+): (.+?)(?=^ {8}\w|\Z)", Recipe.__doc__ or "", re.MULTILINE | re.DOTALL))
    for field in fields(Recipe):
        if field.name in GROUPS:
            parser.group(GROUPS[field.name])
        hint, settings = hints[field.name], dict[str, Any]()
        if get_origin(hint) is Literal:
            settings["choices"] = get_args(hint)
        elif get_origin(hint) is dict:
            settings["type"] = mapping
        about = " ".join(texts[field.name].split()).replace("`", "").rstrip(".")
        default = {} if field.default is MISSING else field.default
        parser.flag(f"--{field.name.replace('_', '-')}", about[0].lower() + about[1:], default, **settings)
