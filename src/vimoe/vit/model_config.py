"""`config.json` of a model folder: read, and checked once, so that whoever uses it finds what it promises."""

import json
from collections.abc import Callable
from os import PathLike, fspath
from os.path import exists
from pathlib import Path
from typing import Any

import timm

from vimoe.errors import UserError
from vimoe.moe.config import MoEConfig
from vimoe.vit.hub_folder import PREFIX, fetch
from vimoe.vit.meta import height_and_width

CONFIG, MOE_KEY = "config.json", "vimoe"


def a_path(path: Any) -> Path:
    """`path` as a `Path`; a `UserError` where it is none."""
    if not isinstance(path, str | PathLike) or isinstance(fspath(path), bytes):
        raise UserError(f"a model folder is named by its path, got {path!r}")
    return Path(path)


def model_folder(path: str | Path) -> Path:
    """The model folder of a run (`model/` in it), the copy of one on the Hub (`hf-hub:user/name`), or the path itself.

    Raises UserError if it is no path, or the Hub cannot give it.
    """
    folder = a_path(path)
    if str(folder).startswith(PREFIX):
        return fetch(str(folder))
    inner = folder / "model"
    return inner if exists(inner / CONFIG) and not exists(folder / CONFIG) else folder  # Path.exists raises on some


def read_config(path: str | Path) -> dict[str, Any]:
    """The entries of a model folder's `config.json`, or of a run folder's; `input_size` is what the model takes.

    Raises UserError if it is missing, no JSON, or not a model's.
    """
    folder = model_folder(path)
    try:
        entries = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a model folder: it holds no {CONFIG}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {folder / CONFIG}: {error}") from error
    if isinstance(entries, dict) and "architecture" not in entries and "model_type" in entries:
        raise UserError(f"{folder} holds a model of transformers: vimoe.load reads it; the verbs take timm's alone")
    if not isinstance(entries, dict) or not {"architecture", "pretrained_cfg"} <= set(entries):
        raise UserError(f"{folder / CONFIG} does not describe a timm model: it names no architecture")
    try:
        check_config(entries)
    except UserError as error:
        raise UserError(f"{folder / CONFIG} does not describe a model: {error}") from error
    _state_input_size(entries)
    return entries


def _state_input_size(entries: dict[str, Any]) -> None:
    """Have `pretrained_cfg` say the size that `model_args` make: without it, or with another, timm takes others."""
    cfg, args = entries["pretrained_cfg"], entries.get("model_args", {})
    if args.get("dynamic_img_size") and "input_size" in cfg:
        return  # it takes images of any size, and these are its own
    if size := args.get("img_size"):
        channels = args.get("in_chans") or (cfg.get("input_size") or [3])[0]
        cfg["input_size"] = [channels, *height_and_width("img_size", size)]


Test = Callable[[Any], bool]


def _whole(lowest: int, highest: int) -> Test:
    return lambda value: type(value) is int and lowest <= value <= highest


def _number(lowest: float, highest: float) -> Test:
    return lambda value: type(value) in (int, float) and lowest <= value <= highest


def _each(holds: Test, *lengths: int) -> Test:
    return lambda value: isinstance(value, list) and (len(value) in lengths or not lengths) and all(map(holds, value))


def _in(*choices: str) -> Test:
    return lambda value: isinstance(value, str) and value in choices


# No ViT goes beyond these, and a damaged number would fill the memory before anything else is found wrong.
_SIZE, _DEPTH = _whole(1, 16384), _whole(1, 1024)
_IMAGE = (_each(_SIZE, 3), "channels, height and width, each 1 to 16384")
_BLOCKS = (_each(_whole(0, 1024)), "a list of block numbers")
_CROP = (_number(0.1, 10), "a number from 0.1 to 10")
_RULES: dict[str, dict[str, tuple[Test, str]]] = {
    "pretrained_cfg": {
        "input_size": _IMAGE,
        "test_input_size": _IMAGE,
        "mean": (_each(_number(-1e6, 1e6)), "a list of numbers"),
        "std": (_each(_number(1e-6, 1e6)), "a list of numbers above 0"),
        "crop_pct": _CROP,
        "test_crop_pct": _CROP,
        "interpolation": (_in("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"), "a filter of Pillow's"),
        "crop_mode": (_in("center", "squash", "border"), "center, squash or border"),
    },
    "model_args": {
        "depth": (_DEPTH, "a whole number from 1 to 1024"),
        "in_chans": (_SIZE, "a whole number from 1 to 16384"),
        "img_size": (lambda value: _SIZE(value) or _each(_SIZE, 2)(value), "one or two whole numbers up to 16384"),
    },
    # What was done to a dense model, see `vimoe.vit.checkpoint.CHANGES`.
    "vimoe_widened": {"layers": _BLOCKS, "factor": (_number(1, 1024), "a number from 1 to 1024")},
    "vimoe_deepened": {"after": _BLOCKS, "hidden": (_whole(1, 10**6), "a whole number up to a million")},
    "vimoe_prompts": {"tokens": (_DEPTH, "a whole number from 1 to 1024")},
    "vimoe_ensemble": {"members": (_whole(1, 64), "a whole number from 1 to 64")},
}


def check_config(entries: dict[str, Any]) -> None:
    """Raise a `UserError` where an entry is not what timm's models and their users take it for."""
    if not isinstance(entries["architecture"], str) or not timm.is_model(entries["architecture"]):
        raise UserError(f"timm knows no architecture {entries['architecture']!r}")
    classes, names = entries.get("num_classes"), entries.get("label_names")
    if type(classes) is not int or not 0 <= classes <= 10**6:
        raise UserError(f"num_classes must be a whole number up to a million, got {classes!r}")
    if names is not None and not _each(lambda name: isinstance(name, str), classes)(names):
        raise UserError(f"label_names must be a list of {classes} names, got {names!r}")
    for part, rules in _RULES.items():
        values = entries.get(part, {})
        if not isinstance(values, dict):
            raise UserError(f"{part} must be a dictionary, got {values!r}")
        for key, (holds, wanted) in rules.items():
            if values.get(key) is not None and not holds(values[key]):
                raise UserError(f"{key} in {part} must be {wanted}, got {values[key]!r}")
    cfg = {key: value for key, value in entries["pretrained_cfg"].items() if value is not None}
    if not cfg:
        raise UserError("pretrained_cfg is empty")
    args = entries.get("model_args", {})
    channels = args.get("in_chans") or cfg.get("input_size", [3])[0]  # where these are missing, timm takes ImageNet's
    if any(len(cfg.get(key, "RGB")) != channels for key in ("mean", "std")):
        raise UserError("mean and std in pretrained_cfg must have a number for each channel of input_size")
    if MOE_KEY in entries:
        MoEConfig.from_dict(entries[MOE_KEY])
