"""A recipe's model: made by timm or read from a folder, given a decoder, upcycled or made a baseline as it says."""

from dataclasses import replace
from functools import partial
from os.path import isfile
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vimoe.data.epoch_order import generator
from vimoe.data.splits import Splits
from vimoe.errors import UserError, first_line
from vimoe.tasks.segmenter import build_segmenter, check_token_routing
from vimoe.tasks.segmenter_folder import holds_segmenter, load_segmenter
from vimoe.training.baselines import make_baseline
from vimoe.training.hub import check_hub
from vimoe.training.recipe import Recipe
from vimoe.vit.blocks import find_backbone
from vimoe.vit.checkpoint import load
from vimoe.vit.inspection import check_model_name
from vimoe.vit.meta import input_shape
from vimoe.vit.upcycle import upcycle
from vimoe.vit.weights_file import model_from_file

# Recipe keys that `upcycle` takes under the same names.
_MORE = (
    *("granularity", "drop_share", "expert_rank", "expert_dropout", "router", "router_scope", "capacity", "balance"),
    *("router_noise", "router_jitter", "router_temperature"),
)


def build_model(recipe: Recipe, splits: Splits) -> nn.Module:
    """The recipe's model, in training mode. Raises UserError if timm does not know it, or it does not fit the data."""
    torch.manual_seed(generator("init", recipe.seed).initial_seed())
    classes = len(splits.class_names)
    start = recipe.start
    make = _create if start is None or isfile(start) else partial(_read, start)
    if recipe.task != "segmentation":
        model: Any = make(recipe, splits, classes)
    elif start is not None and not isfile(start) and holds_segmenter(start):
        model = load_segmenter(start, drop_path_rate=recipe.drop_path)
        if model.num_classes != classes:
            model = build_segmenter(model.backbone, recipe.decoder, classes)
    else:
        model = build_segmenter(make(recipe, splits, 0, dynamic_img_size=True), recipe.decoder, classes)
    channels = input_shape(find_backbone(model).vit)[0]
    if channels != splits.form.input_size[0]:
        raise UserError(f"the model takes images of {channels} channels, and these have {splits.form.input_size[0]}")
    # How it sees images is kept with the model: whoever evaluates it later has them in the same form.
    getattr(model, "backbone", model).pretrained_cfg.update(splits.form._asdict())
    _check_patches(model, recipe, splits.form.input_size[1:])
    if recipe.baseline:
        model = make_baseline(model, recipe, _upcycle)
    elif recipe.last:
        _upcycle(model, recipe)
    if recipe.task == "segmentation":
        check_token_routing(model)
    trained: nn.Module = model.train()
    return trained


def model_width(recipe: Recipe, splits: Splits) -> int:
    """Channels of a token in the last blocks of the recipe's model; fetches no weights."""
    with torch.device("meta" if recipe.start is None else "cpu"):
        model = build_model(replace(recipe, pretrained=False, baseline="", last=0), splits)
    vit: Any = find_backbone(model).vit
    width: int = getattr(vit, "embed_dim", None) or vit.num_features  # Hiera's widths grow from block to block
    return width


def _check_patches(model: Any, recipe: Recipe, size: tuple[int, ...]) -> None:
    """A classifier's images are whole patches: timm would cut off the rest without a word."""
    sides = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if sides is None:  # Hiera's overlap
        return
    for side, pixels in zip(size, (sides, sides) if isinstance(sides, int) else sides, strict=True):
        if side < pixels:
            raise UserError(f"images of {side} pixels are smaller than a patch of this model, {pixels} pixels")
        if side % pixels and recipe.task != "segmentation":
            below = side // pixels * pixels
            raise UserError(
                f"images of {side} pixels are no whole patches of {pixels}: take img_size {below} or {below + pixels}"
            )


def _upcycle(model: nn.Module, recipe: Recipe) -> nn.Module:
    more: dict[str, Any] = {key: getattr(recipe, key) for key in _MORE}
    if recipe.slots is not None:
        more["slots"] = recipe.slots
    return upcycle(
        model,
        recipe.last,
        num_experts=recipe.num_experts,
        top_k=recipe.top_k,
        shared_expert=recipe.shared_expert,
        routing=recipe.routing,
        preset=recipe.preset,
        gate=recipe.gate or None,
        init=recipe.init or None,
        **more,
    )


def _read(start: Path, recipe: Recipe, splits: Splits, num_classes: int, **changes: Any) -> nn.Module:
    size = splits.form.input_size[1:]
    return load(start, img_size=size, num_classes=num_classes, drop_path_rate=recipe.drop_path, **changes)


def _create(recipe: Recipe, splits: Splits, num_classes: int, **changes: Any) -> nn.Module:
    check_model_name(recipe.model)
    channels, height, width = splits.form.input_size
    args = {"img_size": (height, width), "in_chans": channels, **changes, **recipe.model_args}
    if recipe.start is not None:
        return model_from_file(recipe.model, recipe.start, num_classes, drop_path_rate=recipe.drop_path, **args)
    if recipe.pretrained:
        check_hub(recipe.model)
    try:
        model: nn.Module = timm.create_model(
            recipe.model, pretrained=recipe.pretrained, num_classes=num_classes, drop_path_rate=recipe.drop_path, **args
        )
    except Exception as error:  # timm raises whatever its models raise
        raise UserError(f"timm cannot make the model {recipe.model!r} with {args}: {first_line(error)}") from error
    positions = getattr(model, "pos_embed", None)
    if isinstance(positions, nn.Parameter) and not recipe.pretrained:
        nn.init.normal_(positions, std=recipe.pos_embed_std)
    return model
