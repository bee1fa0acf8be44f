"""Model folders: `model.safetensors` and `config.json`, in timm's own form plus the MoE settings.

A dense model's folder is a plain timm folder; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from vimoe.errors import UserError, first_line
from vimoe.moe.config import MoEConfig
from vimoe.vit.upcycle import get_config, install
from vimoe.vit.widen import widen, widening

WEIGHTS, CONFIG, MOE_KEY, WIDENED_KEY = "model.safetensors", "config.json", "vimoe", "vimoe_widened"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    model_args: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a model folder that `load`, and for a dense model timm itself, can read.

    Each file is written under another name and then renamed: a reader sees the old one or the new one, whole.

    Args:
        model: A model made by `timm.create_model`, dense or upcycled.
        folder: Where to write; made if it does not exist, other files in it stay.
        model_args: Arguments of `timm.create_model` that timm could not note down itself.
        extra: More entries for `config.json`, such as `label_names`.

    Raises:
        UserError: The model was not made by `timm.create_model`, or the folder cannot be written.
    """
    folder = Path(folder)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not getattr(model, "pretrained_cfg", {}).get("architecture"):
        raise UserError("only models made by timm.create_model can be saved: this one does not know its own name")
    config = get_config(model)
    entries = {**(extra or {}), **({MOE_KEY: config.to_dict()} if config else {})}
    if changed := widening(model):
        entries[WIDENED_KEY] = changed
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            _write_config(model, Path(scratch) / CONFIG, entries, model_args)
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, Path(scratch) / WEIGHTS)
            for name in (WEIGHTS, CONFIG):
                os.replace(Path(scratch) / name, folder / name)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"cannot write the model to {folder}: {first_line(error)}") from error


def _write_config(model: nn.Module, path: Path, entries: dict[str, Any], model_args: dict[str, Any] | None) -> None:
    try:
        save_config_for_hf(model, str(path), model_config=entries, model_args=model_args)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"cannot describe this model: {first_line(error)}") from error


def load(folder: str | Path, device: str | torch.device = "cpu", **model_args: Any) -> nn.Module:
    """Read a model folder, dense or upcycled, pruned or not; in eval mode.

    Args:
        folder: What `save` wrote.
        device: Where to put the weights.
        model_args: Arguments of `timm.create_model` that change no weight, such as `drop_path_rate`.

    Raises:
        UserError: The folder is missing, foreign, damaged, its weights do not fit its configuration, or there is no
            such device.
    """
    folder = Path(folder)
    entries = read_config(folder)
    try:
        model = _make_model(entries, model_args)
    except Exception as error:  # what a foreign file makes timm raise knows no bounds
        raise UserError(f"{folder / CONFIG} does not describe a model: {first_line(error)}") from error
    _load_weights(model, folder / WEIGHTS)
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(device)!r} cannot be used here: {first_line(error)}") from error


def _make_model(entries: dict[str, Any], model_args: dict[str, Any]) -> nn.Module:
    architecture, moe = entries["architecture"], entries.get(MOE_KEY, {})
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"timm knows no architecture {architecture!r}")
    if not isinstance(moe, dict):
        raise UserError(f"MoE settings must be a dictionary, got {moe!r}")
    overlay = {**entries["pretrained_cfg"], **{k: entries[k] for k in ("num_classes", "label_names") if k in entries}}
    args = {"num_classes": entries.get("num_classes"), **entries.get("model_args", {}), **model_args}
    # What is given by name here cannot come from the file: no other weights are read than the folder's own.
    model = timm.create_model(
        architecture,
        pretrained=False,
        checkpoint_path=None,
        pretrained_cfg=None,
        pretrained_cfg_overlay=overlay,
        **args,
    )
    if WIDENED_KEY in entries:
        widen(model, **entries[WIDENED_KEY])
    if MOE_KEY in entries:
        install(model, MoEConfig.from_dict(moe))
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """The entries of a model folder's `config.json`.

    Raises:
        UserError: It is missing, no JSON, or not a model's.
    """
    path = folder / CONFIG
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a model folder: it holds no {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(entries, dict) or not {"architecture", "pretrained_cfg"} <= set(entries):
        raise UserError(f"{path} does not describe a timm model: it names no architecture")
    return entries


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is not a model folder: it holds no {WEIGHTS}") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    expected = model.state_dict()
    wrong = sorted(set(expected) ^ set(state))
    wrong += sorted(name for name in set(expected) & set(state) if not _fits(state[name], expected[name]))
    if wrong:
        raise UserError(f"{path} does not fit {CONFIG}: {len(wrong)} weights differ, the first is {wrong[0]}")
    model.to(Counter(value.dtype for value in state.values()).most_common(1)[0][0])  # buffers that are not in the file
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)


def _fits(value: Tensor, expected: Tensor) -> bool:
    return value.shape == expected.shape and value.is_floating_point() == expected.is_floating_point()
