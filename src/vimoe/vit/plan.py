"""The plan: what is to become of each MoE layer. Data alone, so that it can be read, edited and carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral
from typing import Any

from vimoe.errors import UserError
from vimoe.moe.config import MoEConfig


@dataclass(frozen=True)
class LayerPlan:
    """What is to become of one MoE layer.

    Attributes:
        layer: Its block number.
        experts: The routed experts to keep, by number; empty makes the layer a plain FFN again.
        load: Share of the assignments that each expert of the layer got, if it was measured; it weighs the
            experts' mean where the layer becomes a plain FFN.
        reason: Why, in words.
        evidence: The numbers that decided, by name; nothing is made of them when the plan is carried out.
    """

    layer: int
    experts: tuple[int, ...]
    load: tuple[float, ...] | None = None
    reason: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)

    @property
    def pruned(self) -> bool:
        """Whether the layer becomes a plain FFN."""
        return not self.experts


@dataclass(frozen=True)
class Plan:
    """What is to become of the MoE layers of a model; a layer that is not named stays as it is.

    Attributes:
        layers: By block.
        split: The split whose images decided, empty where none did: what is reported comes from another one.
    """

    layers: tuple[LayerPlan, ...]
    split: str = ""

    def check(self, config: MoEConfig) -> None:
        """Raise a `UserError` where the plan does not fit a model of this configuration."""
        sizes = dict(zip(config.layers, config.num_experts, strict=True))
        for i, part in enumerate(self.layers):
            where = f"plan for block {part.layer}"
            if part.layer not in sizes:
                raise UserError(f"{where}: the model's MoE layers are blocks {', '.join(map(str, sizes))}")
            if part.layer in [other.layer for other in self.layers[:i]]:
                raise UserError(f"{where}: it appears twice")
            experts = sizes[part.layer]
            wrong = [e for e in part.experts if not isinstance(e, Integral) or not 0 <= e < experts]
            if wrong or len(set(part.experts)) != len(part.experts):
                raise UserError(
                    f"{where}: experts must be distinct numbers from 0 to {experts - 1}, got {list(part.experts)}"
                )
            if 0 < len(part.experts) < config.top_k:
                raise UserError(f"{where}: {len(part.experts)} experts are too few for top_k {config.top_k}")
            if part.load is not None and not _are_shares(part.load, experts):
                raise UserError(f"{where}: load must be {experts} shares, none negative and not all 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return {
            "split": self.split,
            "layers": [
                {
                    "layer": part.layer,
                    "action": "prune" if part.pruned else "keep",
                    "experts": list(part.experts),
                    "load": None if part.load is None else list(part.load),
                    "reason": part.reason,
                    "evidence": dict(part.evidence),
                }
                for part in self.layers
            ],
        }

    @classmethod
    def from_dict(cls, values: Any) -> Plan:
        """Read what `to_dict` wrote, or what somebody made of it by hand.

        Raises:
            UserError: A key is missing or a value has another type than it must.
        """
        try:
            return cls(tuple(_layer_from_dict(part) for part in values["layers"]), str(values.get("split", "")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"not a plan: {type(error).__name__} {error}") from error


def _are_shares(load: tuple[float, ...], experts: int) -> bool:
    return len(load) == experts and all(isfinite(share) and share >= 0 for share in load) and sum(load) > 0


_KEYS = ("layer", "action", "experts", "load", "reason", "evidence")


def _layer_from_dict(part: dict[str, Any]) -> LayerPlan:
    layer, action = part["layer"], part["action"]
    if type(layer) is not int:
        raise UserError(f"not a plan: layer must be a whole number, got {layer!r}")
    if action not in ("keep", "prune"):
        raise UserError(f"plan for block {layer}: action must be keep or prune, got {action!r}")
    for key in part:
        if key not in _KEYS:
            raise UserError(f"plan for block {layer}: unknown key {key!r}; there is {', '.join(_KEYS)}")
    experts = tuple(part.get("experts", ()))
    if any(type(expert) is not int for expert in experts):
        raise UserError(f"plan for block {layer}: experts must be whole numbers, got {list(experts)}")
    if (action == "prune") != (not experts):
        wanted = "no experts" if action == "prune" else "the experts to keep"
        raise UserError(f"plan for block {layer}: action {action} goes with {wanted}, got {list(experts)}")
    load = part.get("load")
    evidence = {str(name): float(value) for name, value in part.get("evidence", {}).items()}
    return LayerPlan(
        layer, experts, None if load is None else tuple(map(float, load)), str(part.get("reason", "")), evidence
    )
