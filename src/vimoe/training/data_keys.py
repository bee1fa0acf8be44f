"""Which recipe keys a data set reads; one that it would ignore is refused. Imports no torch."""

from dataclasses import MISSING, fields

from vimoe.errors import UserError
from vimoe.training.recipe import Recipe

_SPLITS = ("train_split", "val_split", "test_split")
_IMAGES = ("data_dir", *_SPLITS, "img_size", "hflip", "color_jitter")
_FILES = (*_IMAGES, "in_memory", "val_share", "per_class", "scale", "aa", "reprob")
# Data sets that are not listed read `_FILES`.
_READ = {
    "digits": (),
    "glyphs": ("dataset_args",),
    "digit_scenes": ("short_side",),
    "ade20k": (*_IMAGES, "reduce_zero_label", "short_side"),
    "coco": (*_IMAGES, "short_side"),
    **dict.fromkeys(("folder", "tar"), (*_FILES, "super_classes")),
}
# Images with several labels are listed in a table and drawn as a whole.
_READ_SETS = tuple(key for key in _FILES if key not in ("in_memory", "per_class"))
_DATA_KEYS = dict.fromkeys(key for keys in _READ.values() for key in keys)


def ignored_keys(recipe: Recipe) -> set[str]:
    """The keys of the data that the recipe's data set does not read."""
    return set(_DATA_KEYS).difference(_read_by(recipe)[0])


def _read_by(recipe: Recipe) -> tuple[tuple[str, ...], str]:
    if recipe.task == "multilabel":
        return _READ_SETS, "task 'multilabel'"
    return _READ.get(recipe.dataset, _FILES), f"dataset {recipe.dataset!r}"


def check_data_keys(recipe: Recipe) -> None:
    """Refuse a recipe that says what its data set would ignore, with a UserError that names the first such key."""
    (read, whose), ignored = _read_by(recipe), ignored_keys(recipe)
    for field in fields(Recipe):
        value = getattr(recipe, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in ignored and value != default:
            raise UserError(
                f"{whose} does not use {field.name} (got {value!r}): leave it out, or choose "
                f"another dataset; {', '.join(read) or 'no key of the data'} can be set here"
            )
