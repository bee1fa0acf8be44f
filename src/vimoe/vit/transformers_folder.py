"""Folders of transformers' models: their own `config.json` and `model.safetensors`, plus the MoE settings.

A dense or fully pruned model's folder is read by transformers itself.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

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
    """The model that `describe` described, with new weights.

    Raises UserError if transformers is not installed, has no such model, or it does not take the MoE layers.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("this is a transformers model: pip install transformers") from error
    names = entries.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    kind: Any = getattr(transformers, name, None) if name else None
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not known:
        raise UserError(f"{CONFIG} names no model of transformers: architectures is {names!r}")
    moe = MoEConfig.from_dict(entries[MOE_KEY]) if MOE_KEY in entries else None
    try:
        model: nn.Module = kind(kind.config_class.from_dict(_form(entries)))
    except Exception as error:  # a foreign configuration makes it raise whatever it likes
        raise UserError(f"{CONFIG} does not describe a {name}: {first_line(error)}") from error
    if moe is not None:
        install(model, moe)
    return model


def _form(entries: Any) -> Any:
    """Without what starts with `_`, which is transformers' own business, and without what is not read; at any depth."""
    if isinstance(entries, dict):
        kept = {key: value for key, value in entries.items() if not key.startswith("_") and key not in _NOT_READ}
        return {key: _form(value) for key, value in kept.items()}
    return entries
