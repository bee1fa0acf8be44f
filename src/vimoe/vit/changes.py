"""What was done to a dense model beyond its weights: noted on it, so that `config.json` can say how to do it again."""

from typing import Any

from torch import nn


def note_change(module: nn.Module, entry: str, arguments: dict[str, Any]) -> None:
    """Note, on a ViT or an ensemble, the arguments of a change, in plain JSON types, by its entry of `config.json`."""
    module.__dict__["changes"] = {**module.__dict__.get("changes", {}), entry: arguments}


def noted_changes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What was noted on this model, or on the one that it holds."""
    return next((found for module in model.modules() if (found := module.__dict__.get("changes"))), {})
