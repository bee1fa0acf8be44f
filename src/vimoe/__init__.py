"""ViMoE: sparse Mixture-of-Experts Vision Transformers from pretrained dense ones."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vimoe.errors import UserError

if TYPE_CHECKING:
    from vimoe.analysis.evaluate_run import evaluate
    from vimoe.moe.balance import update_balance
    from vimoe.moe.config import MoEConfig
    from vimoe.moe.losses import balance_loss
    from vimoe.report.analyzed_run import analyze
    from vimoe.training.fit import train
    from vimoe.training.recipe import Recipe
    from vimoe.vit.checkpoint import load, save
    from vimoe.vit.cost import cost
    from vimoe.vit.merging import merge
    from vimoe.vit.plan import Plan
    from vimoe.vit.pruning import prune
    from vimoe.vit.recording import record_routing
    from vimoe.vit.upcycle import upcycle

__version__ = "0.1.0"

__all__ = [
    "MoEConfig",
    "Plan",
    "Recipe",
    "UserError",
    "analyze",
    "balance_loss",
    "cost",
    "evaluate",
    "load",
    "merge",
    "prune",
    "record_routing",
    "save",
    "train",
    "upcycle",
    "update_balance",
]

# Imported on first use, so that `vimoe --help` answers without torch.
_HOMES = {
    "MoEConfig": "vimoe.moe.config",
    "Plan": "vimoe.vit.plan",
    "Recipe": "vimoe.training.recipe",
    "analyze": "vimoe.report.analyzed_run",
    "balance_loss": "vimoe.moe.losses",
    "cost": "vimoe.vit.cost",
    "evaluate": "vimoe.analysis.evaluate_run",
    "load": "vimoe.vit.checkpoint",
    "merge": "vimoe.vit.merging",
    "prune": "vimoe.vit.pruning",
    "record_routing": "vimoe.vit.recording",
    "save": "vimoe.vit.checkpoint",
    "train": "vimoe.training.fit",
    "upcycle": "vimoe.vit.upcycle",
    "update_balance": "vimoe.moe.balance",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vimoe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
