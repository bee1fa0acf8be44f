"""From a recipe to a trained model: data, model, loop, run folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from vimoe.data.folder import PictureForm, Variation, picture_form
from vimoe.data.memory import hold_in_memory
from vimoe.data.registry import open_dataset
from vimoe.data.splits import Splits, generator
from vimoe.errors import UserError, first_line
from vimoe.processes import joined
from vimoe.tasks.classification import Classification
from vimoe.training.loop import fit
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run import RunFolder
from vimoe.vit.blocks import find_backbone
from vimoe.vit.checkpoint import load, read_config
from vimoe.vit.upcycle import upcycle
from vimoe.vit.widen import widen


def train(recipe: Recipe) -> RunFolder:
    """Run a recipe to its end, or from where its folder stands.

    Raises:
        UserError: Something in the recipe cannot be done.
    """
    run = RunFolder(Path(recipe.output))
    with joined(pick_device(recipe.device)):
        run.check(recipe)
        if not run.finished:
            splits = open_recipe_data(recipe)
            model = build_model(recipe, splits)
            fit(model, splits, Classification(len(splits.class_names), recipe.smoothing), recipe, run)
    return run


class _Source(NamedTuple):
    """What of a recipe decides which pictures are opened."""

    name: str
    data_dir: str | None
    form: PictureForm | None
    variation: Variation | None
    val_share: float
    seed: int


def open_recipe_data(recipe: Recipe) -> Splits:
    """The recipe's pictures, in the form its model wants them.

    Raises:
        UserError: The data cannot be used, or timm does not know the model.
    """
    form = variation = None
    if recipe.dataset != "digits":
        form = _recipe_form(recipe)
        variation = Variation(recipe.scale, recipe.hflip, recipe.color_jitter, recipe.aa, recipe.reprob)
    variation = variation if recipe.augment else None
    source = _Source(recipe.dataset, recipe.data_dir, form, variation, recipe.val_share, recipe.seed)
    return _open_in_memory(source) if recipe.in_memory else open_dataset(*source)


@lru_cache(maxsize=1)
def _open_in_memory(source: _Source) -> Splits:
    """Decoding takes its time: a process that runs several recipes on the same pictures does it once."""
    return hold_in_memory(open_dataset(*source._replace(variation=None)), source.variation)


def _recipe_form(recipe: Recipe) -> PictureForm:
    if recipe.initial_checkpoint:
        settings = read_config(Path(recipe.initial_checkpoint))["pretrained_cfg"]
    else:
        known = timm.get_pretrained_cfg(recipe.model, allow_unregistered=True) if timm.is_model(recipe.model) else None
        if known is None:
            raise UserError(f"timm has no model {recipe.model!r}")
        settings = known.to_dict()
        channels = recipe.model_args.get("in_chans", settings["input_size"][0])
        if channels != settings["input_size"][0]:
            settings["input_size"] = (channels, *settings["input_size"][1:])
            settings |= {key: (sum(settings[key]) / len(settings[key]),) * channels for key in ("mean", "std")}
    return picture_form(settings, recipe.img_size)


def build_model(recipe: Recipe, splits: Splits) -> nn.Module:
    """The recipe's model for this data, upcycled where the recipe says so.

    Raises:
        UserError: timm does not know the model, or it does not fit the data.
    """
    model: Any
    torch.manual_seed(generator("init", recipe.seed).initial_seed())
    if recipe.initial_checkpoint:
        size: dict[str, Any] = {"img_size": splits.image_shape[1:]} if recipe.img_size else {}
        model = load(recipe.initial_checkpoint, drop_path_rate=recipe.drop_path, **size)
        if model.num_classes != len(splits.class_names):
            model.reset_classifier(len(splits.class_names))
    else:
        model = _create(recipe, splits)
    if recipe.last and recipe.baseline == "wide":
        depth = len(find_backbone(model).blocks)
        widen(model, range(depth - recipe.last, depth), recipe.top_k + recipe.shared_expert)
    elif recipe.last and not recipe.baseline:
        upcycle(
            model,
            recipe.last,
            recipe.num_experts,
            recipe.top_k,
            recipe.shared_expert,
            recipe.routing,
            preset=recipe.preset,
            router_noise=recipe.router_noise,
        )
    return model.train()


def _create(recipe: Recipe, splits: Splits) -> nn.Module:
    channels, height, width = splits.image_shape
    args = {"img_size": (height, width), "in_chans": channels, **recipe.model_args}
    try:
        model: nn.Module = timm.create_model(
            recipe.model,
            pretrained=recipe.pretrained,
            num_classes=len(splits.class_names),
            drop_path_rate=recipe.drop_path,
            pretrained_cfg_overlay=None if recipe.pretrained else _as_seen(splits),
            **args,
        )
    except Exception as error:  # timm raises whatever its models raise
        raise UserError(f"timm cannot make the model {recipe.model!r} with {args}: {first_line(error)}") from error
    positions = getattr(model, "pos_embed", None)
    if isinstance(positions, nn.Parameter) and not recipe.pretrained:
        nn.init.normal_(positions, std=recipe.pos_embed_std)
    return model


def _as_seen(splits: Splits) -> dict[str, Any]:
    """How a model from scratch sees pictures: noted in its `config.json`, for whoever uses it later."""
    return {
        "input_size": splits.image_shape,
        "mean": splits.mean,
        "std": splits.std,
        "interpolation": splits.interpolation,
        "crop_pct": splits.crop_pct,
    }
