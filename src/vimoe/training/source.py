"""A recipe's images, in the form its model wants them."""

from functools import lru_cache
from os.path import isfile
from typing import Any

import timm

from vimoe.data.mask_augmentation import JointAugmentation
from vimoe.data.memory import hold_in_memory
from vimoe.data.registry import EMBEDDED, open_dataset, open_label_sets, open_masks
from vimoe.data.splits import Splits
from vimoe.data.transforms import Augmentation, ImageForm, image_form
from vimoe.training.recipe import Recipe
from vimoe.vit.inspection import check_model_name
from vimoe.vit.model_config import read_config


def open_recipe_data(recipe: Recipe) -> Splits:
    """The images as their model wants them. Raises UserError if they are unusable, or timm knows no such model."""
    form = None if recipe.dataset in EMBEDDED else _recipe_form(recipe)
    splits = (recipe.train_split, recipe.val_split, recipe.test_split)
    if recipe.task == "segmentation":
        joint = JointAugmentation(recipe.hflip, recipe.color_jitter) if recipe.augment else None
        return open_masks(
            recipe.dataset, recipe.data_dir, form, joint, recipe.reduce_zero_label, splits, recipe.short_side
        )
    augmentation = Augmentation(recipe.scale, recipe.hflip, recipe.color_jitter, recipe.aa, recipe.reprob)
    drawn = (recipe.val_share, recipe.seed, splits, recipe.per_class)
    source = (recipe.dataset, recipe.data_dir, form, augmentation if recipe.augment else None, *drawn)
    if recipe.task == "multilabel":
        return open_label_sets(*source[:-1])
    if recipe.in_memory:
        return _open_in_memory(*source, None, recipe.super_classes)
    return open_dataset(*source, recipe.dataset_args, recipe.super_classes)


@lru_cache(maxsize=1)
def _open_in_memory(
    name: str, data_dir: str | None, form: ImageForm | None, augmentation: Augmentation | None, *drawn: Any
) -> Splits:
    """Decoding takes its time: a process that runs several recipes on the same images does it once."""
    return hold_in_memory(open_dataset(name, data_dir, form, None, *drawn), augmentation)


def _recipe_form(recipe: Recipe) -> ImageForm:
    if recipe.start is not None and not isfile(recipe.start):
        settings: dict[str, Any] = read_config(recipe.start)["pretrained_cfg"]
    else:
        check_model_name(recipe.model)
        known = timm.get_pretrained_cfg(recipe.model, allow_unregistered=True)
        settings = known.to_dict()
        channels = recipe.model_args.get("in_chans", settings["input_size"][0])
        if channels != settings["input_size"][0]:
            settings["input_size"] = (channels, *settings["input_size"][1:])
            settings |= {key: (sum(settings[key]) / len(settings[key]),) * channels for key in ("mean", "std")}
    return image_form(settings, recipe.img_size)
