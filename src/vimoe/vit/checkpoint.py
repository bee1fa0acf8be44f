"""Model folders: `model.safetensors` and `config.json`, in timm's own form plus the MoE settings.

A dense model's folder is a plain timm folder; nothing is ever unpickled.
"""

import copy
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from vimoe.distributed import barrier, rank
from vimoe.errors import UserError, first_line
from vimoe.moe.config import MoEConfig, whole_number
from vimoe.vit.blocks import find_backbone
from vimoe.vit.changes import noted_changes
from vimoe.vit.deepen import deepen
from vimoe.vit.ensemble import members_of, repeat
from vimoe.vit.lora import has_lora, merge_lora
from vimoe.vit.meta import height_and_width, input_shape
from vimoe.vit.model_config import CONFIG, MOE_KEY, a_path, check_config, model_folder, read_config
from vimoe.vit.prompts import add_prompts
from vimoe.vit.transformers_folder import describe, is_of_transformers, make, read_entries, with_module_names
from vimoe.vit.upcycle import get_config, install
from vimoe.vit.widen import widen

WEIGHTS = "model.safetensors"
# By entry of `config.json`, what makes a dense model of timm's into what was saved; the entry has the arguments.
CHANGES: dict[str, Callable[..., nn.Module]] = {
    "vimoe_widened": widen,
    "vimoe_deepened": deepen,
    "vimoe_prompts": add_prompts,
    "vimoe_ensemble": repeat,
}
# Where a model keeps the arguments of its own architecture if it was made by another name.
OWN_ARGS = "own_model_args"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    model_args: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a model folder that `load`, and for a dense model timm or transformers itself, can read.

    Each file is written under another name and then renamed: a reader sees the old one or the new one, whole.
    What torch.compile, DDP, DataParallel and averaged copies (timm's and torch's) wrap is saved without the wrapper.
    Where processes share out the weights (FSDP2) all of them call this, and process 0 writes.

    Args:
        model: A model made by `timm.create_model`, or one of transformers', dense or upcycled.
        folder: Where to write; made if it does not exist, other files in it stay.
        model_args: Arguments of `timm.create_model` that timm could not note down itself.
        extra: More entries for `config.json`, such as `label_names`.

    Raises UserError if the model was not made by `timm.create_model` or was cut since, or the folder cannot be written.

    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    >>> vimoe.save(vimoe.upcycle(model), "my-vimoe", extra={"label_names": list("abcdefghij")})
    """
    config, folder, model = get_config(model), a_path(folder), _unwrapped(model)
    theirs = is_of_transformers(model)
    if not theirs and not getattr(model, "pretrained_cfg", {}).get("architecture"):
        raise UserError("only models made by timm.create_model can be saved: this one does not know its own name")
    if not theirs and not hasattr(model, "num_classes"):
        raise UserError(
            "a features_only model is cut to what its features need: save a whole model, whose forward_intermediates "
            "gives the same features"
        )
    if has_lora(model):
        model = merge_lora(copy.deepcopy(model))
    entries = {**(extra or {}), **({MOE_KEY: config.to_dict()} if config else {}), **noted_changes(model)}
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    state = _gathered(model) if sharded else model.state_dict()
    try:
        if not sharded or rank() == 0:
            _write(model, state, folder, entries, model_args)
    finally:
        if sharded:
            barrier()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's, DDP's, DataParallel's and EMA's modules, which hold no other parameters."""
    inner = model._modules.get("_orig_mod") or model._modules.get("module")
    if inner is None or len(list(inner.parameters())) < len(list(model.parameters())):
        return model
    return _unwrapped(inner)


def _gathered(model: nn.Module) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _write(
    model: nn.Module, state: dict[str, Any], folder: Path, entries: dict[str, Any], model_args: dict[str, Any] | None
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            if OWN_ARGS in model.__dict__:
                model._model_args = model.__dict__[OWN_ARGS]
            if is_of_transformers(model):
                (Path(scratch) / CONFIG).write_text(json.dumps(describe(model, get_config(model), entries), indent=2))
            else:
                with _one_line("cannot describe this model"):
                    described, path = members_of(model)[0], str(Path(scratch) / CONFIG)
                    save_config_for_hf(described, path, model_config=entries, model_args=model_args)
            _check_readable(json.loads((Path(scratch) / CONFIG).read_text()), state)
            save_file({name: value.contiguous() for name, value in state.items()}, Path(scratch) / WEIGHTS)
            for name in (WEIGHTS, CONFIG):
                os.replace(Path(scratch) / name, folder / name)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"cannot write the model to {folder}: {first_line(error)}") from error


def _check_readable(entries: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse a model that `load` could not make again, before anything is written."""
    if "architecture" in entries:
        check_config(entries)
    with _one_line("timm cannot make this model again"):
        again = _make_model(entries, {}, "meta")
    if differ := _misfits(again, state):
        raise UserError(
            f"timm would make another model of this one's arguments: {len(differ)} weights differ, the first is "
            f"{differ[0]}; save it before blocks are cut away (prune_intermediate_layers) or replaced"
        )


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """What timm's models and other people's files raise knows no bounds; here it becomes a `UserError`."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {first_line(error)}") from error


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **model_args: Any,
) -> nn.Module:
    """Read a model folder, dense or upcycled, pruned or not; in eval mode.

    Args:
        folder: What `save` or transformers' `save_pretrained` wrote, or a run folder, which holds it.
        device: Where to put the weights.
        img_size: Height and width in pixels; position embeddings are resampled where it is another one.
        num_classes: Classes of the head; where they are others than the folder's, the head is new and untrained.
        model_args: Arguments of `timm.create_model` that change no weight, such as `drop_path_rate`.

    Raises UserError if the folder is missing, foreign, damaged, its weights do not fit its configuration, the model
    cannot be given this size or head, or there is no such device.

    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    >>> vimoe.save(vimoe.upcycle(model, num_experts=4), "my-vimoe")
    >>> vimoe.load("my-vimoe").moe_config.num_experts
    (4, 4)
    """
    folder = model_folder(folder)
    entries = read_entries(folder) or read_config(folder)
    if "architecture" not in entries and (img_size, num_classes, model_args) != (None, None, {}):
        raise UserError(f"{folder} holds a model of transformers: img_size and others are for timm's")
    state = _read_weights(folder / WEIGHTS)
    with _one_line(f"{folder / CONFIG} does not describe a model"):
        skeleton = _make_model(entries, {}, "meta")
        if _misfits(skeleton, state) and "architecture" not in entries and _size(state) == _size(skeleton.state_dict()):
            state = with_module_names(entries, state)
    if wrong := _misfits(skeleton, state):  # before memory is asked for
        line = f"{len(wrong)} weights differ, the first is {wrong[0]}"
        raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {line}")
    with _one_line(f"{folder / CONFIG} does not describe a model"):
        model: Any = _make_model(entries, model_args, "cpu")
    _fill(model, state)
    if img_size is not None:
        height, width = height_and_width("img_size", img_size)
        for vit in [find_backbone(member).vit for member in members_of(model)]:
            if (height, width) != input_shape(vit)[1:]:
                with _one_line(f"{type(vit).__name__} cannot be given images of {height}x{width} pixels"):
                    vit.set_input_size(img_size=(height, width))  # type: ignore[operator]
    if num_classes is not None and model.num_classes != whole_number("num_classes", num_classes):
        with _one_line(f"the model cannot be given {num_classes} classes"):
            model.reset_classifier(num_classes)
        model.pretrained_cfg.pop("label_names", None)
    with _one_line(f"device {str(device)!r} cannot be used here"):
        return model.to(device).eval()


def _make_model(entries: dict[str, Any], model_args: dict[str, Any], device: str) -> nn.Module:
    if "architecture" not in entries:
        with torch.device(device):
            return make(entries)
    # Tuples as timm has them: its benchmark.py adds the batch size to the front of `input_size`.
    described = {key: tuple(v) if isinstance(v, list) else v for key, v in entries["pretrained_cfg"].items()}
    overlay = {**described, **{k: entries[k] for k in ("num_classes", "label_names") if k in entries}}
    args = {"num_classes": entries["num_classes"], **entries.get("model_args", {}), **model_args}
    # What is given by name here cannot come from the file: no other weights are read than the folder's own.
    with torch.device(device):
        model = timm.create_model(
            entries["architecture"],
            pretrained=False,
            checkpoint_path=None,
            pretrained_cfg=None,
            pretrained_cfg_overlay=overlay,
            **args,
        )
    for entry, change in CHANGES.items():
        if entry in entries:
            model = change(model, **entries[entry])
    if MOE_KEY in entries:
        install(model, MoEConfig.from_dict(entries[MOE_KEY]))
    return model


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is not a model folder: it holds no {WEIGHTS}") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    for name, value in state.items():
        if value.dtype not in DTYPES and not name.endswith("num_batches_tracked"):  # batch norm's counter (XCiT)
            raise UserError(f"{path} does not fit {CONFIG}: {name} is of {value.dtype}, not of a type to compute in")
        if not value.isfinite().all():
            raise UserError(f"{path} holds weights that are no finite numbers, the first in {name}")
    return state


def _misfits(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Names of weights that one has and the other has not, or of another shape."""
    expected = model.state_dict()
    wrong = sorted(set(expected) ^ set(state))
    return wrong + sorted(n for n in set(expected) & set(state) if state[n].shape != expected[n].shape)


def _size(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in state.values())


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    if state:
        model.to(Counter(value.dtype for value in state.values()).most_common(1)[0][0])  # buffers not in the file
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(state)
