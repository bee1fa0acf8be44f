"""Folders of transformers' models: their own `config.json` and `model.safetensors`, plus the MoE settings.

A dense or fully pruned model's folder is read by transformers itself.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vimoe.errors import UserError, first_line
from vimoe.moe.config import MoEConfig
from vimoe.vit.model_config import CONFIG, MOE_KEY
from vimoe.vit.upcycle import install

# Of a configuration: what names code or kernels to fetch rather than a model's form.
_NOT_READ = ("attn_implementation", "experts_implementation", "auto_map", "quantization_config", MOE_KEY)


def is_of_transformers(model: nn.Module) -> bool:
    """Whether it is one of transformers' models."""
    return hasattr(model, "save_pretrained") and hasattr(model, "config_class")


def describe(model: nn.Module, moe: MoEConfig | None, extra: dict[str, Any]) -> dict[str, Any]:
    """What `config.json` says of a model: transformers' own entries and the MoE settings."""
    entries = json.loads(model.config.to_json_string())  # type: ignore[union-attr,operator]
    entries.pop(MOE_KEY, None)  # it may be a copy's
    entries |= {**extra, "architectures": [type(model).__name__]}
    return {**entries, MOE_KEY: moe.to_dict()} if moe else entries


def read_entries(folder: Path) -> dict[str, Any] | None:
    """The entries of `config.json` if it is a transformers model's; None for any other, or none at all."""
    try:
        entries = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(entries, dict) and "architecture" not in entries and "model_type" in entries
    return entries if ours else None


def make(entries: dict[str, Any]) -> nn.Module:
    """The model that `describe` or `save_pretrained` described, with new weights.

    Raises UserError if transformers is not installed, has no such model, or it does not take the MoE layers.
    """
    kind, moe = _kind(entries), _moe(entries)
    try:
        model: nn.Module = kind(kind.config_class.from_dict(_form(entries)))
    except Exception as error:  # a foreign configuration makes it raise whatever it likes
        raise UserError(f"{CONFIG} does not describe a {kind.__name__}: {first_line(error)}") from error
    if moe is not None:
        install(model, moe)
    return model


def with_module_names(entries: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the model's modules: `save_pretrained` writes those of older versions.

    Only transformers knows the old names, so its own loading is given a model that starts with MoE layers. Weights
    that do not fit are given back as they are.
    """
    kind, moe = _kind(entries), _moe(entries)

    def start(model: Any, config: Any) -> None:
        kind.__init__(model, config)
        if moe is not None:
            install(model, moe)

    reader: Any = type(kind.__name__, (kind,), {"__init__": start, "__module__": kind.__module__})
    config = kind.config_class.from_dict(_form(entries))
    model, faults = reader.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    return state if any(faults.values()) else model.state_dict()


def _kind(entries: dict[str, Any]) -> Any:
    """The model's class."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("this is a transformers model: pip install transformers") from error
    names = entries.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    kind: Any = getattr(transformers, name, None) if name else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UserError(f"{CONFIG} names no model of transformers: architectures is {names!r}")
    return kind


def _moe(entries: dict[str, Any]) -> MoEConfig | None:
    return MoEConfig.from_dict(entries[MOE_KEY]) if MOE_KEY in entries else None


def _form(entries: Any) -> Any:
    """Without what starts with `_`, which is transformers' own business, and without what is not read; at any depth."""
    if isinstance(entries, dict):
        kept = {key: value for key, value in entries.items() if not key.startswith("_") and key not in _NOT_READ}
        return {key: _form(value) for key, value in kept.items()}
    return entries
